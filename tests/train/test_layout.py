"""Images with the channels last: for convolutions that take them, and with the same results."""

import torch
from torch import nn

from understudy.data import Preprocess
from understudy.data.prepare import ChannelsLast
from understudy.recipe.reader import Source, build_recipe
from understudy.tasks.classify.stages import student_stage
from understudy.tasks.classify.task import Classify
from understudy.train import layout
from understudy.train.layout import laid_out

EXAMPLE = torch.rand(2, 3, 8, 8)
PREPROCESS = Preprocess(mean=(0.4, 0.5, 0.6), std=(0.2, 0.2, 0.3))


class Viewing(nn.Sequential):
    """Reads its maps as rows of numbers, which only the usual order in memory allows."""

    def forward(self, images):
        maps = super().forward(images)
        return maps.view(len(maps), -1)


def asked(*networks, half=False, example=EXAMPLE):
    return laid_out(PREPROCESS, networks, example, half=half)


def test_convolutions_get_the_same_values_with_the_channels_last():
    found = asked(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
    assert isinstance(found, ChannelsLast)
    pixels = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    images = found(pixels)
    assert torch.equal(images, PREPROCESS(pixels))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert not images.is_contiguous()


def test_a_network_that_cannot_and_one_without_convolutions_see_images_as_ever():
    assert asked(Viewing(nn.Conv2d(3, 4, 3))) == PREPROCESS
    assert asked(nn.Sequential(nn.Conv2d(3, 4, 3)), Viewing(nn.Conv2d(3, 4, 3))) == PREPROCESS
    assert asked(nn.Sequential(nn.Flatten(), nn.Linear(192, 4))) == PREPROCESS


def test_asking_changes_no_statistics_and_no_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    asked(network)
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_accelerator_gets_them_in_half_precision_alone(monkeypatch):
    monkeypatch.setattr(layout, "_takes", lambda *_: True)
    network, example = nn.Conv2d(3, 4, 3), EXAMPLE.to("meta")
    assert asked(network, example=example) == PREPROCESS
    assert isinstance(asked(network, example=example, half=True), ChannelsLast)


def test_students_see_that_layout_and_learn_the_same(small_recipe, fitted):
    usual, turned = made(small_recipe), made(small_recipe)
    seen = []
    for arm in turned.arms:
        assert isinstance(arm.preprocess, ChannelsLast)
        arm.distiller.student.register_forward_pre_hook(lambda _, images: seen.append(images[0].stride()))
    for arm in usual.arms:
        arm.preprocess = PREPROCESS
    fitted(usual)
    fitted(turned)
    assert {strides[1] for strides in seen} == {1}
    for one, other in zip(usual.arms, turned.arms, strict=True):
        ends = [nn.utils.parameters_to_vector(arm.distiller.parameters()) for arm in (one, other)]
        torch.testing.assert_close(*ends, rtol=0, atol=1e-5)


def made(small_recipe):
    """A stage of convolutional students on coloured images, the distilled one learning from maps too."""
    draw = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (120, 3, 8, 8), dtype=torch.uint8, generator=draw)
    labels = torch.randint(0, 3, (120,), generator=draw)
    described = {
        **small_recipe,
        "data": {"name": "python:data", "validation": 20, "mean": PREPROCESS.mean, "std": PREPROCESS.std},
        "teacher": {"name": "cnn", "widths": [8, 8]},
        "student": {"name": "cnn", "widths": [4, 8]},
        "method": [{"name": "kd"}, {"name": "at"}],
        "train": {**small_recipe["train"], "epochs": 1},
    }
    given = {"data": {"train": (images, labels), "test": (images[:20], labels[:20])}}
    task = Classify(build_recipe(Source("test", described)), given, torch.device("cpu"))
    return student_stage(task, 0, {"teacher": task.as_teacher(task.build("teacher", 0))})
