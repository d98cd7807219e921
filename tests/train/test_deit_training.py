"""DeiT's way of training: which weights decay, the rates of its schedule, its moving average, repeated samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import understudy as us
from understudy.data import Feed, Preprocess
from understudy.data.source import Samples
from understudy.data.split import Subset
from understudy.models import build
from understudy.models.trainable import train_only
from understudy.recipe.schema import Augment, Model, Train
from understudy.tasks.classify.objectives import labels
from understudy.train.arm import Arm
from understudy.train.optim import make_optimizer, rate_factor

GOLDEN = Path(__file__).parents[1] / "golden" / "deit"
ENTRIES = {entry["id"]: entry for entry in json.loads((GOLDEN / "manifest.json").read_text())["entries"]}


def vit(**options) -> nn.Module:
    pytest.importorskip("timm")
    torch.manual_seed(0)
    model = Model(**{"name": "vit", "patch": 4, "width": 12, "depth": 2, "heads": 2, "tokens": 2, **options})
    return build(model, classes=5, shape=(1, 8, 8))


def arm_of(student: nn.Module, **settings) -> Arm:
    train = Train(**{"epochs": 4, "batch_size": 8, "optimizer": "adamw", **settings})
    learner = us.Distiller(student=student, objectives=[labels(1.0, train)], example=torch.randn(2, 1, 8, 8))
    return Arm("x", "other", learner, train, feed="students", preprocess=Preprocess(), steps_per_epoch=5)


# Decay


def test_the_weights_without_decay_are_timms():
    from timm.optim import param_groups_weight_decay

    student = vit()
    groups = arm_of(student, decay="weights", weight_decay=0.05).optimizer.param_groups
    spared, decayed = param_groups_weight_decay(student, 0.05, no_weight_decay_list=student.no_weight_decay())
    for ours, theirs in ((groups[0], decayed), (groups[1], spared)):
        assert ours["weight_decay"] == theirs["weight_decay"]
        assert {id(parameter) for parameter in ours["params"]} == {id(parameter) for parameter in theirs["params"]}
    names = {name for name, value in student.named_parameters() if any(value is other for other in spared["params"])}
    assert {"cls_token", "dist_token", "pos_embed", "norm.weight", "head.bias"} <= names


def test_by_default_all_weights_decay():
    assert len(arm_of(vit(), weight_decay=0.05).optimizer.param_groups) == 1


def test_what_is_frozen_is_not_optimised():
    student = vit()
    train_only(student, "head")
    arm = arm_of(student, decay="weights", weight_decay=0.05)
    assert {id(parameter) for parameter in arm.trained} == {
        id(parameter) for parameter in (*student.head.parameters(), *student.head_dist.parameters())
    }


# Rates


@pytest.mark.parametrize("case", [name for name in ENTRIES if name.startswith("lr_cosine")])
def test_the_rates_are_the_originals_an_epoch_earlier(case: str):
    settings = ENTRIES[case]["conventions"]
    keys = ("epochs", "warmup_epochs", "lr", "warmup_lr", "min_lr")
    train = Train(schedule="timm-cosine", schedule_per="epoch", **{key: settings[key] for key in keys})
    rate = rate_factor(train, 7, train.epochs)
    ours = np.array([[train.lr * rate(7 * epoch + step) for step in (0, 6)] for epoch in range(train.epochs)])
    np.testing.assert_array_equal(ours[:, 0], ours[:, 1])
    theirs = np.load(GOLDEN / f"{case}.npz")["applied_lr"]  # stepped after each epoch: one late
    np.testing.assert_allclose(ours[:-1, 0], theirs[1:], rtol=1e-12)


def test_the_rate_is_scaled_by_the_batch_size_and_the_smallest_one_is_not():
    train = Train(lr=5e-4, lr_batch=512, batch_size=1024, min_lr=1e-5, schedule="cosine", epochs=10)
    assert make_optimizer([nn.Parameter(torch.zeros(1))], train).param_groups[0]["lr"] == pytest.approx(1e-3)
    assert train.scaled_lr * rate_factor(train, 1, 10)(10) == pytest.approx(1e-5)


# Moving average


def test_the_moving_average_is_timms():
    arrays, settings = np.load(GOLDEN / "model_ema.npz"), ENTRIES["model_ema"]["conventions"]

    def weights(prefix: str) -> dict[str, torch.Tensor]:
        names = [name for name in arrays.files if name.startswith(f"{prefix}.")]
        return {name.removeprefix(f"{prefix}."): torch.tensor(arrays[name]) for name in names}

    width, inputs = weights("init")["0.weight"].shape
    student = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width)).double()
    student.load_state_dict(weights("init"))
    train = Train(ema=settings["decay"])
    example = torch.randn(2, inputs, dtype=torch.float64)
    learner = us.Distiller(student=student, objectives=[labels(1.0, train)], example=example)
    arm = Arm("x", "other", learner, train, feed="students", preprocess=Preprocess(), steps_per_epoch=5)
    for update in range(settings["updates"]):
        student.load_state_dict(weights(f"model{update}"))
        arm.average.update_parameters(student)
    for name, value in weights("ema").items():
        torch.testing.assert_close(arm.model.state_dict()[name], value, rtol=1e-12, atol=0)


# The criterion of the labels


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, lambda logits, target: nn.functional.cross_entropy(logits, target)),
        ({"label_smoothing": 0.1}, lambda logits, target: nn.CrossEntropyLoss(label_smoothing=0.1)(logits, target)),
        (
            {"criterion": "bce"},
            lambda logits, target: nn.functional.binary_cross_entropy_with_logits(
                logits, nn.functional.one_hot(target, 5).float()
            ),
        ),
    ],
)  # fmt: skip
def test_labels_are_learned_by_the_criterion_of_the_recipe(settings, expected):
    student, images, target = vit(tokens=1), torch.randn(4, 1, 8, 8), torch.tensor([0, 3, 4, 1])
    losses = arm_of(student, **settings).distiller(images, target)
    torch.testing.assert_close(losses.total, expected(student(images), target))


def test_binary_questions_and_smoothing_exclude_each_other():
    with pytest.raises(ValueError, match="label_smoothing: is nothing to criterion 'bce'"):
        Train(criterion="bce", label_smoothing=0.1)


# Repeated augmentation


def feed(samples: int, batch: int, **settings) -> Feed:
    images = torch.arange(samples * 12).remainder(251).to(torch.uint8).view(samples, 3, 2, 2).repeat(1, 1, 8, 8)
    source = Samples(lambda ids, keys: images[torch.from_numpy(ids)], np.arange(samples) % 7, (3, 16, 16))
    part = Subset(source, np.arange(samples), source.labels)
    return Feed(part, batch_size=batch, seed=3, settings=Augment(**settings), classes=7)


def test_each_sample_comes_three_times_as_another_view():
    batches = feed(1000, 48, repeats=3.0, crop=4, flip=True)
    assert batches.steps_per_pass == 768 // 48
    ids = torch.cat([batches[step].sample_ids for step in range(16)]).view(-1, 3)
    assert (ids == ids[:, :1]).all()
    assert len(ids[:, 0].unique()) == 256
    views = batches[0].images.view(16, 3, -1)
    assert all(len({tuple(view.tolist()) for view in copies}) > 1 for copies in views)
    again = torch.cat([batches[step].sample_ids for step in range(16, 32)])
    assert set(again.tolist()) != set(ids.flatten().tolist())


def test_a_step_of_repeats_is_a_function_of_its_number_alone():
    in_order, alone = feed(600, 32, repeats=2.0, crop=2), feed(600, 32, repeats=2.0, crop=2)
    wanted = [in_order[step] for step in range(20)][19]
    assert torch.equal(wanted.images, alone[19].images)
    assert torch.equal(wanted.sample_ids, alone[19].sample_ids)


@pytest.mark.parametrize("samples", [1, 5, 200])
def test_few_samples_are_repeated_and_an_epoch_is_never_empty(samples: int):
    batches = feed(samples, 16, repeats=3.0, flip=True)
    ids = torch.cat([batches[step].sample_ids for step in range(batches.steps_per_pass)])
    assert len(ids) == samples


def test_without_repeats_every_sample_comes_once():
    batches = feed(100, 16)
    ids = torch.cat([batches[step].sample_ids for step in range(batches.steps_per_pass)])
    assert sorted(ids.tolist()) == list(range(100))
