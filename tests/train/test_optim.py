"""Learning-rate curves against formulas written down independently."""

import math

import pytest
import torch

from understudy.recipe.schema import Train
from understudy.train.optim import make_optimizer, make_schedule, moments_of, update

STEPS = 5


def curve(epochs: int = 6, **settings) -> list[float]:
    """The learning rate of each step."""
    train = Train(epochs=epochs, lr=0.4, **settings)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make_optimizer([parameter], train)
    schedule = make_schedule(optimizer, train, STEPS, epochs)
    rates = []
    for _ in range(epochs * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        parameter.grad = torch.zeros(1)
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return rates


def test_constant():
    assert curve() == [0.4] * 30


def test_linear_to_its_floor():
    expected = [0.1 + 0.3 * (1 - step / 30) for step in range(30)]
    assert curve(schedule="linear", min_lr=0.1) == pytest.approx(expected)


def test_cosine_to_its_floor():
    expected = [0.1 + 0.3 * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert curve(schedule="cosine", min_lr=0.1) == pytest.approx(expected)


def test_cosine_held_during_an_epoch():
    expected = [0.4 * (1 + math.cos(math.pi * (step // 5) / 6)) / 2 for step in range(30)]
    assert curve(schedule="cosine", schedule_per="epoch") == pytest.approx(expected)


def test_cosine_is_torchs_own():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=0.4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.01)
    rates = []
    for _ in range(30):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    assert curve(schedule="cosine", min_lr=0.01) == pytest.approx(rates)


def test_steps_down_after_milestones():
    expected = [0.4] * 10 + [0.04] * 15 + [0.004] * 5
    assert curve(schedule="step", milestones=(2, 5)) == pytest.approx(expected)


def test_steps_down_no_further_than_the_floor():
    assert curve(schedule="step", milestones=(1, 2), min_lr=0.01)[-1] == pytest.approx(0.01)


def test_warm_up_rises_in_a_straight_line_from_above_zero():
    rates = curve(warmup_epochs=2.0)
    assert rates[:10] == pytest.approx([0.4 * (step + 1) / 11 for step in range(10)])
    assert rates[10:] == [0.4] * 20


def test_warm_up_then_cosine():
    rates = curve(warmup_epochs=1.0, schedule="cosine")
    assert max(rates) == rates[5] == pytest.approx(0.4)
    assert rates[5:] == pytest.approx([0.4 * (1 + math.cos(math.pi * step / 25)) / 2 for step in range(25)])


@pytest.mark.parametrize(("name", "kind"), [("sgd", "SGD"), ("adam", "Adam"), ("adamw", "AdamW")])
def test_an_optimizer_takes_its_settings(name, kind):
    train = Train(optimizer=name, lr=0.3, weight_decay=0.02, momentum=0.7, nesterov=True, betas=(0.8, 0.9))
    frozen = torch.nn.Parameter(torch.zeros(1), requires_grad=False)
    optimizer = make_optimizer([torch.nn.Parameter(torch.zeros(1)), frozen], train)
    (group,) = optimizer.param_groups
    assert type(optimizer).__name__ == kind
    assert len(group["params"]) == 1
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.02)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.7, True)
    else:
        assert tuple(group["betas"]) == (0.8, 0.9)


OPTIMIZERS = [
    {"optimizer": "sgd", "momentum": 0.0},
    {"optimizer": "sgd", "momentum": 0.9, "nesterov": True},
    {"optimizer": "adam"},
    {"optimizer": "adamw"},
]


@pytest.mark.parametrize("spares", [False, True], ids=["all decay", "some decay"])
@pytest.mark.parametrize("chosen", OPTIMIZERS, ids=lambda chosen: "-".join(map(str, chosen.values())))
def test_an_update_of_one_tensor_is_that_of_torchs_optimiser(chosen, spares):
    settings = Train(epochs=1, lr=0.05, weight_decay=0.1, **chosen)
    start = torch.randn(2, 6, dtype=torch.float64)
    parts = [torch.nn.Parameter(part.clone()) for part in (start[:, :4], start[:, 4:])]
    optimizer = make_optimizer(parts, settings, undecayed=parts[1:] if spares else ())
    ours = start.clone()
    moments = [torch.zeros_like(ours) for _ in moments_of(settings)]
    decay = torch.tensor([0.1] * 4 + [0.0 if spares else 0.1] * 2, dtype=torch.float64) if spares else 0.1
    for step in range(4):
        gradient = torch.randn_like(start)
        parts[0].grad, parts[1].grad = gradient[:, :4].clone(), gradient[:, 4:].clone()
        optimizer.step()
        update(settings, ours, gradient.clone(), moments, step, rate=0.05, decay=decay)
        torch.testing.assert_close(ours, torch.cat([part.detach() for part in parts], dim=1), rtol=0, atol=1e-14)
    before = [tensor.clone() for tensor in (ours, *moments)]
    skip = torch.ones(())
    update(settings, ours, torch.full_like(ours, torch.nan), moments, 4, rate=0.05, decay=decay, skip=skip)
    assert all(torch.equal(now, then) for now, then in zip((ours, *moments), before, strict=True))
