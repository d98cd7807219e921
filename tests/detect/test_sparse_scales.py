"""Sparse training: the proximal step is its closed form, and the shipped defaults part dead channels from live ones."""

import math

import numpy as np
import pytest

pytest.importorskip("ultralytics")
pytest.importorskip("torch_pruning")

import torch
from torch import nn

from understudy.errors import UserError
from understudy.tasks.detect.sparse import Sparsity, add_subgradient, histogram, learning_rates, scales_of, shrink


def test_the_proximal_step_is_its_closed_form():
    scales = torch.tensor([-2.0, -0.3, -0.1, 0.0, 0.05, 0.1, 0.7])
    expected = np.sign(scales.numpy()) * np.maximum(np.abs(scales.numpy()) - 0.1, 0)
    shrink([scales], 0.1)
    np.testing.assert_array_equal(scales.numpy(), expected.astype(np.float32))


def test_the_proximal_step_minimises_what_it_should():
    """The step of γ solves argmin_x ½(x - γ)² + a·|x|: no point of a fine grid is better."""
    gamma, amount = 0.37, 0.12
    found = torch.tensor([gamma])
    shrink([found], amount)
    grid = np.linspace(-1, 1, 20001)
    best = grid[np.argmin(0.5 * (grid - gamma) ** 2 + amount * np.abs(grid))]
    assert math.isclose(float(found), best, abs_tol=1e-4)


def test_the_subgradient_is_added_to_gradients_that_are_there():
    first, second = nn.Parameter(torch.tensor([-1.0, 2.0])), nn.Parameter(torch.tensor([1.0]))
    first.grad = torch.tensor([0.5, 0.5])
    add_subgradient([first, second], 0.25)
    assert first.grad.tolist() == [0.25, 0.75]
    assert second.grad is None


def toy():
    """A network whose output reads half of its channels, one each: the others are dead, planted between the live."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1, bias=False))
    live = torch.arange(16) % 2 == 0
    net[3].weight.data.zero_()
    net[3].weight.data[torch.arange(8), live.nonzero().flatten()] = 1.0
    net[3].requires_grad_(False)
    return net, live


def test_the_shipped_defaults_separate_dead_channels_from_live_ones():
    net, live = toy()
    images = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = net(images)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=0.01, weight_decay=0)
    strength = Sparsity().over(1).at(0)
    (scales,) = scales_of(net, ["1"])
    for _ in range(220):  # a dead scale falls by half the learning rate a step: from 1 to 0 in 200
        optimizer.zero_grad()
        ((net(images) - wanted) ** 2).mean().backward()
        optimizer.step()
        (rate,) = learning_rates(optimizer, [scales])
        shrink([scales], rate * strength)
    assert (scales.detach()[~live] == 0).all()
    assert scales.detach().abs()[live].min() > 0.5
    assert histogram(net, ["1"])["zero"] == pytest.approx(0.5)


def test_a_strength_has_one_schedule_over_the_training():
    constant = Sparsity(strength=0.5)
    falling = Sparsity(strength=0.5, schedule="linear", end=0.1)
    assert [constant.over(4).at(epoch) for epoch in range(4)] == [0.5] * 4
    np.testing.assert_allclose([falling.over(4).at(epoch) for epoch in range(4)], [0.5, 0.35, 0.2, 0.05])


@pytest.mark.parametrize(
    ("given", "said"),
    [({"strength": 0.0}, "strength"), ({"method": "l2"}, "proximal or subgradient"), ({"schedule": "step"}, "schedule"),
     ({"end": -1.0}, "end")],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(given, said):
    with pytest.raises(UserError, match=said):
        Sparsity(**given)


def test_a_histogram_counts_every_scale(narrow_yaml):
    from understudy.tasks.detect.channels import prunable_scales
    from understudy.tasks.detect.guest import YOLO

    model = YOLO(str(narrow_yaml)).model
    names = prunable_scales(model)
    spread = histogram(model, names)
    assert sum(spread["counts"]) == sum(scale.numel() for scale in scales_of(model, names))
    assert spread["smallest"] == spread["largest"] == 1.0
