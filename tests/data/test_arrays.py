"""Data given as Python objects."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, TensorDataset

import understudy as us
from understudy import randomness
from understudy.data import Samples, Source, from_object, load_source
from understudy.data.source import Resident
from understudy.data.table import REGISTERED
from understudy.errors import UserError
from understudy.recipe.schema import Data

LABELS = np.array([0, 1, 2, 1, 0])


def images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


class Items(Dataset):
    """Gives whatever a function makes of a number."""

    def __init__(self, make, count: int = 5) -> None:
        self.make = make
        self.count = count

    def __getitem__(self, index: int):
        return self.make(index)

    def __len__(self) -> int:
        return self.count


def read(source: Source, *ids: int) -> torch.Tensor:
    return source.train.read(np.array(ids), None)


# Arrays and tensors


@pytest.mark.parametrize(
    ("shape", "found"),
    [
        ((5, 8, 9), (1, 8, 9)),
        ((5, 3, 8, 9), (3, 8, 9)),
        ((5, 8, 9, 3), (3, 8, 9)),
        ((5, 8, 9, 1), (1, 8, 9)),
        ((5, 7, 8, 9), (7, 8, 9)),
        ((5, 12), (1, 1, 12)),
    ],
)
def test_the_axes_of_arrays(shape: tuple[int, ...], found: tuple[int, int, int]):
    source = from_object((images(*shape), LABELS), name="x")
    assert source.train.shape == found
    assert read(source, 0, 3).shape == (2, *found)


def test_channels_last_becomes_channels_first():
    given = images(5, 8, 9, 3)
    np.testing.assert_array_equal(read(from_object((given, LABELS), name="x"), 2)[0], given[2].transpose(2, 0, 1))


@pytest.mark.parametrize(
    "given",
    [
        images(5, 8, 8)[::-1],
        images(8, 8, 5).transpose(2, 0, 1),
        np.frombuffer(images(5, 8, 8).tobytes(), np.uint8).reshape(5, 8, 8),
        torch.from_numpy(images(5, 8, 8)),
        images(5, 8, 8).astype(np.float64),
        images(5, 8, 8).astype(">f4"),
        torch.rand(5, 8, 8, requires_grad=True),
        torch.rand(5, 8, 8, dtype=torch.bfloat16),
    ],
    ids=["reversed", "transposed", "read-only", "tensor", "float64", "big-endian", "grad", "bfloat16"],
)
def test_any_memory_is_taken(given: np.ndarray | torch.Tensor):
    found = read(from_object((given, LABELS), name="x"), 0, 1, 2, 3, 4)[:, 0]
    assert not found.requires_grad
    assert found.dtype != torch.float64
    wanted = given.detach().float() if isinstance(given, torch.Tensor) else torch.tensor(given.astype("f4"))
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=0)


@pytest.mark.parametrize(
    "labels",
    [LABELS.tolist(), LABELS[:, None], torch.from_numpy(LABELS), LABELS.astype(float), LABELS.astype(np.uint8)],
)
def test_labels_in_any_form(labels):
    train = from_object((images(5, 8, 8), labels), name="x").train
    assert train.labels.dtype == np.int64
    np.testing.assert_array_equal(train.labels, LABELS)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((images(5, 8, 8), LABELS[:4]), r"x\['train'\]: 4 labels for 5 images"),
        ((images(5, 8, 8), np.eye(3)[LABELS]), r"labels have shape \(5, 3\).*argmax"),
        ((images(5, 8, 8), LABELS + 0.5), "labels such as '0.5' are no class numbers"),
        ((images(5, 8, 8), list("abcab")), "labels such as 'a' are no class numbers"),
        ((images(5, 8, 8), LABELS - 2), "image 0 has label -2"),
        ((images(5), LABELS), r"images have shape \(5,\)"),
        ((images(5, 2, 3, 8, 8), LABELS), r"images have shape \(5, 2, 3, 8, 8\)"),
        ((images(0, 8, 8), []), r"images have shape \(0, 1, 8, 8\)"),
        ((images(5, 8, 8).astype(int), LABELS), r"images are torch\.int64: wanted uint8 or float \(convert"),
        ((np.array(["a"] * 5), LABELS), "images are <U1"),
        ({"test": (images(5, 8, 8), LABELS)}, "data has no 'train'"),
        (
            {"train": (images(5, 8, 8), LABELS), "val": None},
            "unknown part 'val', known: classes, test, train, validation",
        ),
        ({"train": (images(5, 8, 8), LABELS), "classes": ["a", "b"]}, "image 2 has label 2, but there are 2 classes"),
        (
            {"train": (images(5, 8, 8), LABELS), "test": (images(5, 9, 9), LABELS)},
            r"\(1, 8, 8\) in train and \(1, 9, 9\) in test",
        ),
        (7, "is neither a pair"),
        ([], "is empty"),
    ],
)
def test_what_does_not_fit_is_refused(given, message: str):
    with pytest.raises(UserError, match=message):
        from_object(given, name="x")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_pixel_that_is_no_number_is_named(value: float):
    given = images(5, 8, 8).astype(np.float32)
    given[3, 2, 1] = value
    with pytest.raises(UserError, match="image 3 has a pixel that is not a finite number"):
        from_object((given, LABELS), name="x")
    source = from_object(Items(lambda index: (given[index], 0)), name="x")
    with pytest.raises(UserError, match="image 3 has a pixel that is not a finite number"):
        read(source, 1, 3)


def test_a_mapping_names_its_parts_and_classes():
    part = (images(5, 8, 8), LABELS)
    source = from_object({"train": part, "validation": part, "test": None, "classes": ["a", "b", "c"]}, name="x")
    assert source.classes == ("a", "b", "c")
    assert source.validation is not None
    assert source.test is None
    assert from_object({"train": part, "classes": 7}, name="x").classes == tuple("0123456")


def test_a_source_and_a_function_are_taken_as_they_are():
    source = Source("own", ("a",), Samples(Resident(torch.zeros(2, 1, 4, 4)), np.zeros(2, np.int64), (1, 4, 4)))
    assert from_object(source, name="x") is source
    assert from_object(lambda: source, name="x") is source


# Datasets


@pytest.mark.parametrize(
    "make",
    [
        lambda n: (torch.full((3, 4, 4), n, dtype=torch.uint8), n % 3),
        lambda n: (torch.full((3, 4, 4), n, dtype=torch.uint8), torch.tensor(n % 3), "path", {"more": 1}),
        lambda n: [np.full((4, 4, 3), n, np.uint8), np.int64(n % 3)],
        lambda n: {"image": Image.new("RGB", (4, 4), (n, n, n)), "label": n % 3},
        lambda n: {"pixel_values": torch.full((3, 4, 4), n, dtype=torch.float64), "labels": n % 3},
        lambda n: (Image.new("RGBA", (4, 4), (n, n, n, 255)), n % 3),
    ],
    ids=["tensor", "longer", "array", "mapping", "float64", "rgba"],
)
def test_datasets_of_every_form(make):
    source = from_object(Items(make), name="x")
    assert source.train.shape == (3, 4, 4)
    np.testing.assert_array_equal(source.train.labels, [0, 1, 2, 0, 1])
    found = read(source, 4, 0, 2)
    assert found.dtype in (torch.uint8, torch.float32)
    assert found[:, 0, 0, 0].tolist() == [4, 0, 2]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "I;16", "P", "CMYK", "RGB"])
def test_pillow_images_of_every_mode(mode: str):
    source = from_object(Items(lambda n: (Image.new(mode, (4, 5)), 0)), name="x")
    assert source.train.shape == ((1 if mode in ("1", "L", "LA", "I;16") else 3), 5, 4)
    assert read(source, 0).dtype == torch.uint8


def test_a_tensor_dataset_is_not_read_sample_by_sample():
    dataset = TensorDataset(torch.from_numpy(images(5, 8, 8)), torch.from_numpy(LABELS), torch.arange(5))
    assert isinstance(from_object(dataset, name="x").train.read, Resident)


def test_class_names_and_targets_of_torchvision_are_used():
    dataset = Items(lambda n: (images(8, 8), n % 3))
    dataset.classes = ["ant", "bee", "cow"]  # pyright: ignore[reportAttributeAccessIssue]
    dataset.targets = [2, 2, 2, 2, 2]  # pyright: ignore[reportAttributeAccessIssue]
    source = from_object(dataset, name="x")
    assert source.classes == ("ant", "bee", "cow")
    assert set(source.train.labels) == {2}
    dataset.target_transform = lambda label: label  # pyright: ignore[reportAttributeAccessIssue]
    assert set(from_object(dataset, name="x").train.labels) == {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda n: torch.zeros(3, 4, 4), "a sample is a Tensor"),
        (lambda n: {"image": 1}, "a sample has the keys image"),
        (lambda n: ("path.png", 0), "image 0: is a str: wanted a tensor"),
        (lambda n: (torch.zeros(2, 3, 4, 4), 0), r"image 0: has shape \(2, 3, 4, 4\)"),
        (lambda n: (torch.zeros(3, 4, 4, dtype=torch.int32), 0), r"image 0: images are torch\.int32"),
        (lambda n: (torch.zeros(3, 4, 4), "cat"), "labels such as 'cat' are no class numbers"),
    ],
)
def test_samples_that_are_no_images_are_refused(make, message: str):
    with pytest.raises(UserError, match=message):
        from_object(Items(make), name="x")


def test_images_that_differ_in_size_are_named():
    source = from_object(Items(lambda n: (images(8, 8 + n), 0)), name="x")
    with pytest.raises(UserError, match=r"differ in size: \(1, 8, 8\) \(image 0\) and \(1, 8, 9\) \(image 1\)"):
        read(source, 0, 1)


def test_the_random_transforms_of_a_dataset_follow_the_keys():
    def view(number: int):
        drawn = [torch.rand(1).item(), np.random.rand(), random.random()]
        return torch.tensor(drawn).view(1, 1, 3), 0

    train = from_object(Items(view), name="x").train
    keys = randomness.keys(1, np.arange(5))
    views = train.read(np.arange(5), keys)
    torch.testing.assert_close(train.read(np.array([3, 1]), keys[[3, 1]]), views[[3, 1]], rtol=0, atol=0)
    assert len(torch.unique(views)) == 15


# Names of one's own


def test_registered_data_gets_the_recipes_options():
    @us.data.add("test-noise")
    def noise(*, count: int):
        return images(count, 8, 8), np.arange(count) % 2

    try:
        source = load_source(Data.model_validate({"name": "test-noise", "count": 6}))
    finally:
        REGISTERED.pop("test-noise")
    assert (len(source.train), source.classes, source.name) == (6, ("0", "1"), "test-noise")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "mnsit"}, r"data\.name: unknown data set 'mnsit', did you mean 'mnist'"),
        ({"name": "digits", "pth": "x"}, r"data\.pth: unknown key"),
        ({"name": "folder", "size": 8}, r"data\.path: is missing"),
        ({"name": "folder", "path": "x", "size": 8, "channels": 2}, r"data\.channels: should be 1 or 3"),
        ({"name": "python:x"}, "pass the same object again"),
    ],
)
def test_unknown_names_and_options_say_the_near_ones(data: dict, message: str):
    with pytest.raises(UserError, match=message):
        load_source(Data.model_validate(data))
