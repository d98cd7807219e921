"""Hugging Face data sets from local parquet files, in the layout of the hub."""

import io
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy import randomness
from understudy.data.hub import hub
from understudy.data.source import Resident
from understudy.errors import UserError

datasets = pytest.importorskip("datasets")

NAMES = ["cat", "dog", "emu"]


def encoded(seed: int, size: tuple[int, int] = (12, 12), mode: str = "RGB") -> dict:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "png")
    return {"bytes": stream.getvalue(), "path": None}


def write(folder: Path, labels: list | None = None, *, split: str = "train", kind: object = None, **options) -> Path:
    """One split as a parquet file; `kind` is the type of the labels, by default a class column with names."""
    labels = [0, 1, 2, 1] if labels is None else labels
    rows = {"img": [encoded(number, **options) for number in range(len(labels))], "label": labels}
    features = {"img": datasets.Image(), "label": kind or datasets.ClassLabel(names=NAMES)}
    (folder / "data").mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    table.to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    return folder


def test_small_images_are_decoded_once_and_kept(tmp_path: Path):
    write(tmp_path, split="test", labels=[2])
    source = hub(path=str(write(tmp_path)))
    assert source.test is not None
    assert (source.classes, source.train.shape, len(source.test)) == (tuple(NAMES), (3, 12, 12), 1)
    assert isinstance(source.train.read, Resident)
    np.testing.assert_array_equal(source.train.labels, [0, 1, 2, 1])
    wanted = np.asarray(Image.open(io.BytesIO(encoded(3)["bytes"]))).transpose(2, 0, 1)
    np.testing.assert_array_equal(source.train.read(np.array([3]), None)[0], wanted)


def test_large_images_are_decoded_when_asked_for_and_cropped_by_key(tmp_path: Path):
    train = hub(path=str(write(tmp_path, size=(100, 80))), size=24).train
    assert train.shape == (3, 24, 24)
    keys = randomness.keys(1, np.arange(4))
    views = train.read(np.arange(4), keys)
    torch.testing.assert_close(train.read(np.array([2, 0]), keys[[2, 0]]), views[[2, 0]], rtol=0, atol=0)
    assert (views != train.read(np.arange(4), None)).any()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_grey_palette_and_transparent_images_are_read(tmp_path: Path, mode: str):
    assert hub(path=str(write(tmp_path, mode=mode))).train.shape == (3, 12, 12)
    assert hub(path=str(tmp_path), channels=1).train.shape == (1, 12, 12)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_the_names_of_a_validation_split(tmp_path: Path, name: str):
    write(tmp_path, split=name, labels=[0, 1])
    source = hub(path=str(write(tmp_path)))
    assert source.validation is not None
    assert len(source.validation) == 2


def test_plain_labels_become_classes_in_order(tmp_path: Path):
    numbers = hub(path=str(write(tmp_path / "a", [7, 3, 7], kind=datasets.Value("int32"))), label="label")
    assert numbers.classes == ("3", "7")
    np.testing.assert_array_equal(numbers.train.labels, [1, 0, 1])
    words = hub(path=str(write(tmp_path / "b", ["b", "a", "c"], kind=datasets.Value("string"))), label="label")
    assert words.classes == ("a", "b", "c")
    np.testing.assert_array_equal(words.train.labels, [1, 0, 2])


def test_a_label_that_train_does_not_have_is_named(tmp_path: Path):
    write(tmp_path, ["cat", "dog"], kind=datasets.Value("string"))
    write(tmp_path, ["dgo"], kind=datasets.Value("string"), split="test")
    with pytest.raises(UserError, match=r"\(test\): no training image has the label 'dgo', did you mean 'dog'"):
        hub(path=str(tmp_path), label="label")


def test_missing_columns_and_splits_are_named(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(UserError, match="has no column 'image', did you mean 'img'"):
        hub(path=str(tmp_path), image="image")
    with pytest.raises(UserError, match=r"which column is the label\? found none among img, label"):
        hub(path=str(write(tmp_path / "plain", kind=datasets.Value("int64"))))
    with pytest.raises(UserError, match=r"has no split 'train' \(it has test\)"):
        hub(path=str(write(tmp_path / "other", split="test")))


def test_a_folder_without_parquet_and_a_damaged_file_are_named(tmp_path: Path):
    with pytest.raises(UserError, match="holds no parquet files"):
        hub(path=str(tmp_path))
    (tmp_path / "train-0.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(UserError, match="cannot be read as a data set"):
        hub(path=str(tmp_path))


def test_a_damaged_and_a_missing_image_are_named(tmp_path: Path):
    for content, message in (({"bytes": b"x", "path": None}, "image 1: is no image"), (None, "image 1: is missing")):
        rows = {"img": [encoded(0), content], "label": [0, 1]}
        features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
        with pytest.raises(UserError, match=message):
            hub(path=str(tmp_path))


def test_images_of_different_or_unknown_size_need_a_size(tmp_path: Path):
    with pytest.raises(UserError, match=r"set data\.size"):
        hub(path=str(write(tmp_path / "large", size=(100, 80))))
    folder = write(tmp_path / "small")
    rows = {"img": [encoded(0, (12, 12)), encoded(1, (10, 12))], "label": [0, 1]}
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(UserError, match=r"differ in size: set data\.size"):
        hub(path=str(folder))
    assert hub(path=str(folder), size=8).train.shape == (3, 8, 8)


def test_a_hub_name_without_network_is_one_clear_line():
    with pytest.raises(UserError, match=r"nobody/nothing: cannot be read as a data set"):
        hub(path="nobody/nothing")


@pytest.mark.data
@pytest.mark.slow
def test_real_cifar10_is_whole_and_read_quickly(data_root: Path):
    began = time.process_time()
    source = hub(path=str(data_root / "cifar10"))
    assert time.process_time() - began < 30
    assert source.test is not None
    assert source.classes[:3] == ("airplane", "automobile", "bird")
    np.testing.assert_array_equal(np.bincount(source.train.labels), [5000] * 10)
    np.testing.assert_array_equal(np.bincount(source.test.labels), [1000] * 10)
    mean = source.train.read(np.arange(50_000), None).float().mean((0, 2, 3)) / 255
    assert mean.tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=2e-3)
