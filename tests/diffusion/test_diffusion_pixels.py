"""Pixels on their way to a network, data without labels, the classifier, and pictures."""

import numpy as np
import pytest
import torch

from understudy.errors import UserError
from understudy.tasks.diffusion.judge import Judge, classifier
from understudy.tasks.diffusion.pictures import grid, labelled_rows, moments
from understudy.tasks.diffusion.pixels import Canvas, read_images
from understudy.tasks.diffusion.settings import DiffusionData
from understudy.tasks.diffusion.stages import chunk_of


def test_bytes_become_minus_one_to_one_and_floats_stay():
    assert Canvas()(torch.tensor([[[[0, 255]]]], dtype=torch.uint8)).tolist() == [[[[-1.0, 1.0]]]]
    latents = torch.randn(2, 4, 3, 3) * 9
    assert torch.equal(Canvas()(latents), latents)


def test_small_images_are_padded_in_the_middle_with_their_darkest_value():
    image = torch.full((1, 1, 28, 28), 255, dtype=torch.uint8)
    padded = Canvas(None, 32)(image)
    assert padded.shape == (1, 1, 32, 32)
    assert padded[0, 0, 2:30, 2:30].min() == 1
    assert padded.sum() == 28 * 28 - (32 * 32 - 28 * 28)
    assert Canvas(16, 20).shape((3, 8, 8)) == (3, 20, 20)
    assert Canvas(16)(image).shape == (1, 1, 16, 16)
    with pytest.raises(UserError, match="28x28 cannot be padded to 20"):
        Canvas(None, 20).shape((1, 28, 28))


class Alone(torch.utils.data.Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        return torch.full((1, 4, 4), index, dtype=torch.uint8)


@pytest.mark.parametrize(
    "given", [torch.zeros(20, 1, 4, 4, dtype=torch.uint8), Alone(), {"train": np.zeros((20, 4, 4), np.uint8)}]
)
def test_images_need_no_labels(given):
    splits = read_images(DiffusionData(name="python:x", validation="none"), given)
    assert splits.classes == ("0",)
    assert len(splits.teacher) + len(splits.test) == 20


def test_pairs_keep_their_labels():
    given = (torch.zeros(20, 1, 4, 4, dtype=torch.uint8), torch.arange(20) % 2)
    assert len(read_images(DiffusionData(name="python:x", validation="none"), given).classes) == 2


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 2, 2)])
def test_the_judges_logits_are_those_of_its_features(shape):
    model = classifier(classes=5, shape=shape, widths=(8, 8), features=12).eval()
    images = torch.rand(7, *shape) * 2 - 1
    judge = Judge(model)
    features = judge.features(images)
    assert features.shape == (7, 12)
    with torch.no_grad():
        assert torch.equal(judge.classes(features), model(images).argmax(1))


def test_grids_hold_all_images_in_order():
    images = torch.stack([torch.full((1, 8, 8), value) for value in (-1.0, 0.0, 1.0)])
    picture = grid(images, 2)
    assert picture.size == (2 * 42, 2 * 42)
    assert [picture.getpixel(place)[0] for place in ((5, 5), (47, 5), (5, 47))] == [0, 128, 255]
    assert labelled_rows([("word", images)]).width == 150 + 3 * 42
    assert grid(torch.zeros(1, 4, 50, 50), 1).size == (52, 52)


def test_moments_keep_the_first_and_the_last():
    path = [torch.full((1, 1), float(place)) for place in range(65)]
    assert moments(path, 5).flatten().tolist() == [0, 16, 32, 48, 64]
    assert len(moments(path[:3], 9)) == 3


def test_updates_are_evaluated_in_equal_parts():
    assert chunk_of(1000, 500) == 500
    assert chunk_of(90, 500) == 90
    assert chunk_of(1100, 500) == 275
    assert chunk_of(1009, 500) == 1009  # a prime: evaluated once
