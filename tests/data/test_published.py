"""CIFAR, Flowers, Cars and iNaturalist in the layouts of their authors, where it can be read by torchvision too."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torchvision import datasets

from understudy.data import load_source
from understudy.data.source import Source
from understudy.errors import UserError
from understudy.recipe.schema import Data

RANDOM = np.random.default_rng(0)


def read(name: str, path: Path, **options) -> Source:
    return load_source(Data.model_validate({"name": name, "path": str(path), **options}))


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


# CIFAR


@pytest.fixture(params=["cifar10", "cifar100"])
def cifar(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    layouts = {"cifar10": ("cifar-10-batches-py", "labels", "batches.meta", "label_names", 10)}
    layouts["cifar100"] = ("cifar-100-python", "fine_labels", "meta", "fine_label_names", 100)
    folder, labels, meta, names, classes = layouts[request.param]
    files = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    (tmp_path / folder).mkdir()
    for file in files if request.param == "cifar10" else ["train", "test"]:
        content = {
            "data": RANDOM.integers(0, 256, (6, 3072), np.uint8),
            labels: RANDOM.integers(0, classes, 6).tolist(),
        }
        (tmp_path / folder / file).write_bytes(pickle.dumps(content, protocol=3))
    described = {names: [f"kind {number}" for number in range(classes)]}
    (tmp_path / folder / meta).write_bytes(pickle.dumps(described, protocol=3))
    return request.param, tmp_path


def test_cifar_is_what_torchvision_reads(cifar, monkeypatch):
    name, root = cifar
    theirs = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    monkeypatch.setattr(theirs, "_check_integrity", lambda _: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    source = read(name, root)
    assert source.test is not None
    for train, part in ((True, source.train), (False, source.test)):
        wanted = theirs(str(root), train=train)
        images = part.read(np.arange(len(part)), None)
        np.testing.assert_array_equal(images.permute(0, 2, 3, 1), wanted.data)
        assert part.labels.tolist() == wanted.targets
        assert list(source.classes) == wanted.classes
    folder = next(root.iterdir())
    assert len(read(name, folder).train) == len(source.train)


def test_small_images_are_enlarged_where_a_size_is_wanted(cifar):
    name, root = cifar
    small, large = read(name, root), read(name, root, size=64, scale=[0.5, 1.0])
    assert large.train.shape == (3, 64, 64)
    whole = large.train.read(np.array([2]), None)
    image = Image.fromarray(small.train.read(np.array([2]), None)[0].permute(1, 2, 0).numpy())
    wanted = np.array(image.resize((64, 64), Image.Resampling.BICUBIC, box=(2, 2, 30, 30)))
    np.testing.assert_array_equal(whole[0].permute(1, 2, 0), wanted)
    views = large.train.read(np.array([2, 2]), np.array([3, 4], np.uint64))
    assert not torch.equal(views[0], views[1])


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Attack(), 3), "data_batch_1: is no file of CIFAR, or is damaged (it names posix.system"),
        (b"\x80\x02}", "data_batch_1: is no file of CIFAR, or is damaged"),
        (pickle.dumps({"labels": [1]}, 3), "data_batch_1: holds no data and labels: it is another file"),
        (pickle.dumps({"data": np.zeros((2, 10), np.uint8), "labels": [0, 1]}, 3), "holds no images of 3 x 32 x 32"),
        (pickle.dumps({"data": np.zeros((6, 3072), np.uint8), "labels": [0, 1, 2, 3, 4, 10]}, 3), "has label 10"),
        (None, "data_batch_1: there is no such file"),
    ],
)
@pytest.mark.parametrize("cifar", ["cifar10"], indirect=True)
def test_a_file_that_is_no_part_of_cifar_runs_nothing_and_is_named(cifar, content, message, monkeypatch, tmp_path):
    name, root = cifar
    monkeypatch.chdir(tmp_path)
    file = root / "cifar-10-batches-py" / "data_batch_1"
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(name, root)
    assert message in str(caught.value)
    assert not (tmp_path / "attacked").exists()


# Flowers


@pytest.fixture
def flowers(tmp_path: Path) -> Path:
    root = tmp_path / "flowers-102"
    for number in range(1, 11):
        picture(root / "jpg" / f"image_{number:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.array([[1, 1, 2, 2, 3, 3, 1, 2, 3, 1]], np.uint8)})
    parts = {"trnid": [[6, 1, 3]], "valid": [[4, 2]], "tstid": [[5, 7, 8, 9, 10]]}
    savemat(root / "setid.mat", {name: np.array(ids, np.uint16) for name, ids in parts.items()})
    return tmp_path


def test_flowers_is_what_torchvision_reads_and_both_parts_are_trained_on(flowers: Path, monkeypatch):
    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda _: True)
    source = read("flowers", flowers, size=16)
    theirs = {split: datasets.Flowers102(str(flowers), split=split) for split in ("train", "val", "test")}
    pairs = [*zip(theirs["train"]._image_files, theirs["train"]._labels, strict=True)]
    pairs += zip(theirs["val"]._image_files, theirs["val"]._labels, strict=True)
    assert [*zip(source.train.read.files, source.train.labels, strict=True)] == sorted(pairs)
    assert source.test is not None
    assert source.test.read.files == theirs["test"]._image_files
    assert source.test.labels.tolist() == theirs["test"]._labels
    assert source.classes == ("1", "2", "3")
    assert source.train.read(np.arange(2), None).shape == (2, 3, 16, 16)
    assert len(read("flowers", flowers / "flowers-102", size=16).train) == 5


# Cars


@pytest.fixture
def cars(tmp_path: Path) -> Path:
    root = tmp_path / "stanford_cars"
    (root / "devkit").mkdir(parents=True)
    names = np.array(["Acura RL", "BMW M3", "Fiat 500"], object)
    savemat(root / "devkit" / "cars_meta.mat", {"class_names": names.reshape(1, 3)})
    rows = [(1, 1, 9, 9, 2, "00001.jpg"), (1, 1, 9, 9, 3, "00002.jpg"), (1, 1, 9, 9, 1, "00003.jpg")]
    kinds = [(field, object) for field in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")]
    for split, file in (("train", "devkit/cars_train_annos.mat"), ("test", "cars_test_annos_withlabels.mat")):
        chosen = rows if split == "train" else rows[1:]
        savemat(root / file, {"annotations": np.array([chosen], kinds)})
        for row in chosen:
            picture(root / f"cars_{split}" / row[-1])
    return tmp_path


def test_cars_is_what_torchvision_reads(cars: Path):
    source = read("cars", cars, size=16)
    assert source.test is not None
    for split, part in (("train", source.train), ("test", source.test)):
        theirs = datasets.StanfordCars(str(cars), split=split)
        assert [*zip(map(str, part.read.files), part.labels, strict=True)] == theirs._samples
        assert list(source.classes) == theirs.classes
    assert source.train.read(np.arange(3), None).shape == (3, 3, 16, 16)


# iNaturalist


@pytest.fixture
def inaturalist(tmp_path: Path) -> Path:
    kinds = [("Rosa canina", "Rosa"), ("Rana arvalis", "Rana"), ("Rosa gallica", "Rosa")]
    categories = [{"id": 10 + number, "name": name, "genus": genus} for number, (name, genus) in enumerate(kinds)]
    (tmp_path / "categories.json").write_text(json.dumps(categories))
    for split, labels in (("train", [12, 10, 11]), ("val", [11, 12])):
        files = [f"{split}_val2018/Plantae/{label}/{number}.jpg" for number, label in enumerate(labels)]
        for file in files:
            picture(tmp_path / file)
        images = [{"id": 100 - number, "file_name": file} for number, file in enumerate(files)]
        rows = [{"id": 7, "image_id": 100 - number, "category_id": label} for number, label in enumerate(labels)]
        table = {"images": images, "annotations": rows, "categories": [{"id": 10, "name": "10"}]}
        (tmp_path / f"{split}2018.json").write_text(json.dumps(table))
    return tmp_path


def test_inaturalist_is_read_by_its_annotations(inaturalist: Path):
    source = read("inaturalist", inaturalist, size=16)
    assert source.classes == ("Rosa canina", "Rana arvalis", "Rosa gallica")
    assert source.train.labels.tolist() == [2, 0, 1]
    assert [file.parent.name for file in source.train.read.files] == ["12", "10", "11"]
    assert source.validation is not None
    assert source.validation.labels.tolist() == [1, 2]
    assert source.validation.read(np.arange(2), None).shape == (2, 3, 16, 16)
    by_genus = read("inaturalist", inaturalist, size=16, category="genus")
    assert by_genus.classes == ("Rana", "Rosa")
    assert by_genus.train.labels.tolist() == [1, 1, 0]


# What is not there

_WITHOUT_IMAGES = b'{"images": [], "annotations": [{"image_id": 5, "category_id": 10}], "categories": []}'


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("flowers", "flowers-102/setid.mat", None, "setid.mat: there is no such file"),
        ("flowers", "flowers-102/imagelabels.mat", b"x", "imagelabels.mat: is no MATLAB file with 'labels'"),
        ("cars", "stanford_cars/cars_test_annos_withlabels.mat", None, "withlabels.mat: there is no such file"),
        ("cars", "stanford_cars/devkit/cars_train_annos.mat", b"", "is no MATLAB file with 'annotations'"),
        ("inaturalist", "val2018.json", None, "there is no valYEAR.json in it"),
        ("inaturalist", "train2018.json", b"[1", "train2018.json: is no JSON that can be read"),
        ("inaturalist", "val2018.json", _WITHOUT_IMAGES, "the annotations of 'val' name 5, which is not listed"),
        ("inaturalist", "train2018.json", b"[1]", "holds no images, annotations and categories"),
    ],
)
def test_files_that_are_missing_or_damaged_are_named(request, name, file, content, message):
    root = request.getfixturevalue(name)
    (root / file).unlink() if content is None else (root / file).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(name, root, size=16)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rank_that_is_not_known_is_refused(inaturalist: Path):
    with pytest.raises(UserError, match=r"data\.category: there is no 'genes', did you mean 'genus'"):
        read("inaturalist", inaturalist, size=16, category="genes")
