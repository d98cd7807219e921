"""Digits and idx files, wherever torchvision, Keras or a person put them."""

import gzip
import hashlib
import io
import os
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from understudy.data import idx as module
from understudy.data.digits import digits
from understudy.data.idx import idx, read_idx
from understudy.errors import UserError

# Read here, because the tests hide the environment from the code.
ROOT = Path(os.environ.get("UNDERSTUDY_DATA", ""))
NAMES = list(module._FILES.values())


def encode(array: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.fixture
def content() -> dict[str, bytes]:
    draw = np.random.default_rng(0)
    arrays = [draw.integers(0, 256, (20, 28, 28)), np.arange(20) % 10, draw.integers(0, 256, (10, 28, 28)), range(10)]
    return {name: encode(np.array(array)) for name, array in zip(NAMES, arrays, strict=True)}


@pytest.fixture(autouse=True)
def empty_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the machine is found: home, working folder and environment are the test's own."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("UNDERSTUDY_DATA", raising=False)
    monkeypatch.chdir(home)
    return home


def write(folder: Path, content: dict[str, bytes], *, zipped: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / (name + ".gz" * zipped)).write_bytes(gzip.compress(data) if zipped else data)
    return folder


# scikit-learn's digits


def test_digits_are_split_1200_200_397_and_always_alike():
    first, again = digits(), digits()
    parts = [first.train, first.validation, first.test]
    assert [len(part) for part in parts if part] == [1200, 200, 397]
    np.testing.assert_array_equal(first.train.labels, again.train.labels)
    assert first.train.shape == (1, 8, 8)
    assert first.classes == tuple("0123456789")


def test_digits_are_those_of_scikit_learn_each_once():
    source = digits()
    assert source.validation is not None
    assert source.test is not None
    ours = [
        part.read(np.arange(len(part)), None).flatten(1).numpy()
        for part in (source.train, source.validation, source.test)
    ]
    theirs = np.round(load_digits().data * 255 / 16).astype(np.uint8)
    sort = lambda rows: rows[np.lexsort(rows.T)]  # noqa: E731
    np.testing.assert_array_equal(sort(np.concatenate(ours)), sort(theirs))


def test_the_split_of_digits_is_pinned():
    np.testing.assert_array_equal(digits().train.labels[:12], [1, 1, 7, 9, 5, 1, 8, 0, 0, 5, 8, 8])


# Where idx files are found


@pytest.mark.parametrize("zipped", [False, True])
def test_a_folder_of_plain_or_gzipped_files_is_read(tmp_path: Path, content: dict[str, bytes], zipped: bool):
    source = idx(dataset="mnist", path=str(write(tmp_path / "here", content, zipped=zipped)))
    assert source.test is not None
    assert (len(source.train), len(source.test), source.train.shape) == (20, 10, (1, 28, 28))
    wanted = np.frombuffer(content[NAMES[0]], np.uint8, offset=16).reshape(20, 1, 28, 28)
    np.testing.assert_array_equal(source.train.read(np.arange(20), None).numpy(), wanted)
    np.testing.assert_array_equal(source.train.labels, np.arange(20) % 10)


@pytest.mark.parametrize(
    "place", ["data/mnist", "data/MNIST/raw", ".cache/understudy/mnist", "elsewhere/mnist", "elsewhere/MNIST/raw"]
)
def test_the_usual_places_are_searched(
    empty_home: Path, content: dict[str, bytes], place: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("UNDERSTUDY_DATA", str(empty_home / "elsewhere"))
    write(empty_home / place, content)
    assert len(idx(dataset="mnist").train) == 20


@pytest.mark.parametrize("place", ["data/FashionMNIST/raw", ".keras/datasets/fashion-mnist", "data/fashion-mnist"])
def test_fashion_mnist_has_its_own_places_and_names(empty_home: Path, content: dict[str, bytes], place: str):
    write(empty_home / place, content, zipped=True)
    assert idx(dataset="fashion-mnist").classes[9] == "Ankle boot"
    with pytest.raises(UserError, match="no idx files of mnist"):
        idx(dataset="mnist")


def test_keras_npz_is_read_by_itself_or_by_path(empty_home: Path):
    file = empty_home / ".keras" / "datasets" / "mnist.npz"
    file.parent.mkdir(parents=True)
    arrays = {"x_train": np.zeros((4, 28, 28), np.uint8), "x_test": np.ones((2, 28, 28), np.uint8)}
    np.savez(file, y_train=np.array([1, 2, 3, 4], np.uint8), y_test=np.array([5, 6], np.uint8), **arrays)
    for source in (idx(dataset="mnist"), idx(dataset="mnist", path="~/.keras/datasets/mnist.npz")):
        assert source.test is not None
        np.testing.assert_array_equal(source.train.labels, [1, 2, 3, 4])
        assert source.test.read(np.array([1]), None).sum() == 784


@pytest.mark.parametrize("content", [b"", b"no zip file", "half"])
def test_a_damaged_npz_is_named(empty_home: Path, content: bytes | str):
    file = empty_home / "mnist.npz"
    np.savez(file, x_train=np.zeros((4, 28, 28), np.uint8))
    if content != "half":
        file.write_bytes(content)  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match=r"mnist\.npz: is not Keras'"):
        idx(dataset="mnist", path=str(file))


def test_data_that_is_nowhere_is_said_with_the_places_and_what_to_do():
    with pytest.raises(UserError, match=r"looked in .*understudy.*\.keras.*UNDERSTUDY_DATA.*data\.download=true"):
        idx(dataset="mnist")


# Files that are wrong


def test_a_missing_companion_is_named(tmp_path: Path, content: dict[str, bytes]):
    del content[NAMES[3]]
    with pytest.raises(UserError, match=f"'{NAMES[3]}'.*is missing"):
        idx(dataset="mnist", path=str(write(tmp_path / "x", content)))


@pytest.mark.parametrize("length", [0, 3, 4, 9, 16, 500])
def test_a_file_cut_short_is_named(tmp_path: Path, content: dict[str, bytes], length: int):
    content[NAMES[0]] = content[NAMES[0]][:length]
    with pytest.raises(UserError, match=NAMES[0]):
        idx(dataset="mnist", path=str(write(tmp_path / "x", content)))


@pytest.mark.parametrize("keep", [10, 40, 60])
def test_a_damaged_gzip_file_is_named(tmp_path: Path, content: dict[str, bytes], keep: int):
    folder = write(tmp_path / "x", content, zipped=True)
    file = folder / f"{NAMES[1]}.gz"
    data = file.read_bytes()
    file.write_bytes(data[: min(keep, len(data) - 1)])
    with pytest.raises(UserError, match=f"{NAMES[1]}.gz: the gzip file is damaged"):
        idx(dataset="mnist", path=str(folder))


def test_labels_in_place_of_images_are_refused(tmp_path: Path, content: dict[str, bytes]):
    (tmp_path / "file").write_bytes(content[NAMES[1]])
    with pytest.raises(UserError, match=r"is no idx file of images \(its first bytes are 00000801\)"):
        read_idx(tmp_path / "file", 0x803)


def test_a_label_out_of_range_is_named(tmp_path: Path, content: dict[str, bytes]):
    content[NAMES[1]] = encode(np.full(20, 10))
    with pytest.raises(UserError, match=r"image 0 has label 10, but there are 10 classes \(0 to 9\)"):
        idx(dataset="mnist", path=str(write(tmp_path / "x", content)))


def test_fewer_labels_than_images_are_refused(tmp_path: Path, content: dict[str, bytes]):
    content[NAMES[1]] = encode(np.zeros(19))
    with pytest.raises(UserError, match="19 labels for 20 images"):
        idx(dataset="mnist", path=str(write(tmp_path / "x", content)))


# Fetching


def serve(monkeypatch: pytest.MonkeyPatch, files: dict[str, bytes]) -> list[str]:
    asked: list[str] = []

    def urlopen(url: str, timeout: float) -> io.BytesIO:
        asked.append(url)
        name = url.rsplit("/", 1)[1]
        if name not in files:
            raise urllib.error.URLError("no such file")
        return io.BytesIO(files[name])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return asked


def test_files_are_fetched_once_and_then_found(
    content: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, empty_home: Path
):
    files = {f"{name}.gz": gzip.compress(data) for name, data in content.items()}
    asked = serve(monkeypatch, files)
    monkeypatch.setitem(module._MD5, "mnist", tuple(hashlib.md5(data).hexdigest() for data in files.values()))
    assert len(idx(dataset="mnist", download=True).train) == 20
    assert len(idx(dataset="mnist", download=True).train) == 20
    assert len(asked) == 4
    assert not list((empty_home / ".cache").rglob("*.tmp"))


@pytest.mark.parametrize("data", [b"<html>not found</html>", gzip.compress(b"another file")])
def test_a_fetched_file_with_another_checksum_is_not_kept(
    monkeypatch: pytest.MonkeyPatch, empty_home: Path, data: bytes
):
    serve(monkeypatch, {f"{name}.gz": data for name in NAMES})
    for dataset in ("mnist", "fashion-mnist"):
        with pytest.raises(UserError, match="checksum differs"):
            idx(dataset=dataset, download=True)
    assert not [file for file in (empty_home / ".cache").rglob("*") if file.is_file()]


def test_a_network_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch):
    serve(monkeypatch, {})
    with pytest.raises(UserError, match=r"train-images-idx3-ubyte\.gz: could not be fetched"):
        idx(dataset="mnist", download=True)


def test_the_checksums_are_those_of_torchvision():
    from torchvision.datasets import MNIST, FashionMNIST

    for dataset, theirs in (("mnist", MNIST), ("fashion-mnist", FashionMNIST)):
        wanted = {name.removesuffix(".gz"): digest for name, digest in theirs.resources}
        assert dict(zip(NAMES, module._MD5[dataset], strict=True)) == wanted


@pytest.mark.data
def test_real_mnist_is_whole():
    source = idx(dataset="mnist", path=str(ROOT / "mnist"))
    assert source.test is not None
    assert (len(source.train), len(source.test)) == (60_000, 10_000)
    counts = np.bincount(source.train.labels)
    np.testing.assert_array_equal(counts, [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949])
    pixels = source.train.read(np.arange(60_000), None).double() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=5e-5)
    assert pixels.std().item() == pytest.approx(0.3081, abs=5e-5)
