"""Image files in folders and CSVs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from understudy import randomness
from understudy.data.folder import Files, csv, folder
from understudy.data.image import cut, open_image, random_box
from understudy.errors import UserError


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def put(path: Path, image: Image.Image | None = None, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or picture()).save(path, **options)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for name in ("cat", "dog"):
            for number in range(count):
                put(tmp_path / "pets" / split / name / f"{number}.png", picture(number))
    return tmp_path / "pets"


# Folders


def test_splits_and_classes_are_the_folders(root: Path):
    source = folder(path=str(root), size=16)
    assert source.test is not None
    assert source.validation is not None
    assert (source.classes, source.train.shape) == (("cat", "dog"), (3, 16, 16))
    assert [len(part) for part in (source.train, source.validation, source.test)] == [6, 4, 2]
    np.testing.assert_array_equal(source.train.labels, [0, 0, 0, 1, 1, 1])
    images = source.train.read(np.arange(6), None)
    assert (images.shape, images.dtype) == ((6, 3, 16, 16), torch.uint8)


def test_unlabelled_images_have_no_label(root: Path):
    put(root / "train" / "unlabelled" / "deep" / "x.jpg")
    np.testing.assert_array_equal(folder(path=str(root), size=16).train.labels, [0, 0, 0, 1, 1, 1, -1])


def test_other_files_are_passed_over(root: Path):
    (root / "train" / "cat" / "Thumbs.db").write_text("x")
    (root / "train" / "README.txt").write_text("x")
    assert len(folder(path=str(root), size=16).train) == 6


def test_a_class_that_train_does_not_have_is_named(root: Path):
    put(root / "test" / "bog" / "x.png")
    with pytest.raises(UserError, match=r"test/bog: is a class that 'train' does not have, did you mean 'dog'"):
        folder(path=str(root), size=16)


def test_an_empty_class_is_named(root: Path):
    (root / "train" / "emu").mkdir()
    with pytest.raises(UserError, match=r"train/emu: holds no images \(\.bmp, \.jpeg"):
        folder(path=str(root), size=16)


@pytest.mark.parametrize(
    ("made", "message"),
    [((), "has no folder 'train'"), (("train",), "train: is empty"), (("train/cat", "train/dog"), "holds no images")],
)
def test_a_folder_without_images_is_refused(tmp_path: Path, made: tuple[str, ...], message: str):
    for place in made:
        (tmp_path / place).mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        folder(path=str(tmp_path), size=16)


# What files hold


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("L", "png"), ("1", "png"), ("RGBA", "png"), ("LA", "png"), ("P", "png"), ("CMYK", "jpg"), ("I;16", "png")],
)
def test_images_of_every_mode_are_read(tmp_path: Path, mode: str, suffix: str, channels: int):
    image = picture()
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    else:
        image = image.convert(mode)
    path = put(tmp_path / f"x.{suffix}", image)
    pixels = cut(open_image(path, channels), None, None)
    assert (pixels.shape, pixels.dtype) == ((channels, 30, 40), torch.uint8)
    if mode == "I;16":  # 16 bits become the highest 8
        np.testing.assert_array_equal(pixels[0], np.asarray(picture().convert("L")))


def test_a_palette_with_transparency_is_read_by_its_colours(tmp_path: Path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    path = put(tmp_path / "x.png", image, transparency=bytes([0, 255]))
    np.testing.assert_array_equal(np.asarray(open_image(path, 3))[0], [[10, 20, 30], [200, 100, 50]])


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str):
    image = Image.new("RGB", (16, 8), "black")
    image.paste("white", (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright: turn a quarter clockwise
    path = put(tmp_path / f"x.{suffix}", image, exif=exif)
    upright = np.asarray(open_image(path, 1))
    assert upright.shape == (16, 8)
    assert upright[:7].mean() > 240
    assert upright[9:].mean() < 15


@pytest.mark.parametrize("content", [b"", b"no image", "half"])
def test_a_damaged_image_is_named_when_read(root: Path, content: bytes | str):
    path = root / "train" / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:400] if content == "half" else content)  # pyright: ignore[reportArgumentType]
    source = folder(path=str(root), size=16)
    with pytest.raises(UserError, match=r"train/cat/1\.png: is no image that can be read"):
        source.train.read(np.arange(6), None)


def test_an_image_that_went_missing_is_named(root: Path):
    source = folder(path=str(root), size=16)
    (root / "train" / "dog" / "0.png").unlink()
    with pytest.raises(UserError, match=r"dog/0\.png: no such image"):
        source.train.read(np.arange(6), None)


# Crops


def test_a_random_crop_is_a_function_of_its_key(root: Path):
    train = folder(path=str(root), size=16).train
    keys = randomness.keys(1, np.arange(6))
    views = train.read(np.arange(6), keys)
    torch.testing.assert_close(train.read(np.array([4, 2]), keys[[4, 2]]), views[[4, 2]], rtol=0, atol=0)
    other = train.read(np.arange(6), randomness.keys(2, np.arange(6)))
    assert all((view != second).any() for view, second in zip(views, other, strict=True))


def test_random_boxes_stay_inside_and_keep_their_share_of_the_area():
    for draw in randomness.uniform(randomness.keys(3, np.arange(500)), 4):
        left, top, right, bottom = random_box(40, 30, draw, (0.2, 0.5))
        assert 0 <= left < right <= 40 + 1e-9
        assert 0 <= top < bottom <= 30 + 1e-9
        assert (right - left) * (bottom - top) / 1200 <= 0.5 + 1e-9
        assert 3 / 4 - 1e-9 <= (right - left) / (bottom - top) <= 4 / 3 + 1e-9


def test_an_image_of_the_wanted_size_is_left_as_it_is(tmp_path: Path):
    path = put(tmp_path / "x.png", picture(size=(16, 16)))
    pixels = Files([path], 16, 3)(np.array([0]))[0]
    np.testing.assert_array_equal(pixels.permute(1, 2, 0), np.asarray(picture(size=(16, 16))))


# CSV


def table(root: Path, text: str, encoding: str = "utf-8") -> str:
    (root / "list.csv").write_text(text, encoding=encoding)
    return str(root / "list.csv")


def test_a_csv_says_paths_labels_and_splits(root: Path):
    rows = ["path,label,split"]
    rows += [f"train/{name}/{n}.png,{name},train" for name in ("dog", "cat") for n in range(3)]
    rows += ["train/cat/0.png,,", "test/cat/0.png,cat,test", "val/dog/0.png,dog,val"]
    source = csv(path=table(root, "\n".join(rows)), size=8, channels=1)
    assert source.test is not None
    assert source.validation is not None
    np.testing.assert_array_equal(source.train.labels, [1, 1, 1, 0, 0, 0, -1])
    assert (len(source.test), len(source.validation), source.train.shape) == (1, 1, (1, 8, 8))


def test_a_csv_from_excel_is_read(root: Path):
    assert len(csv(path=table(root, "path,label\r\ntrain/cat/0.png,cat\r\n", "utf-8-sig"), size=8).train) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na,b", r"list\.csv:1: its first line must name the columns path and label"),
        ("", "its first line must name"),
        ("path,label\n", "has no rows"),
        ("path,label\ntrain/cat/9.png,cat", r"list\.csv:2: no such image '.*9\.png'"),
        ("path,label\n,cat", r"list\.csv:2: no such image"),
        ("path,label,split\ntrain/cat/0.png,cat,trian", r"list\.csv:2: unknown split 'trian'"),
        ("path,label,split\ntest/cat/0.png,cat,test", "no row has the split 'train'"),
        (
            "path,label,split\ntrain/cat/0.png,cat,train\ntest/cat/0.png,cta,test",
            r"list\.csv:3: no training row has the label 'cta', did you mean 'cat'",
        ),
    ],
)
def test_a_wrong_csv_is_refused_with_its_line(root: Path, text: str, message: str):
    with pytest.raises(UserError, match=message):
        csv(path=table(root, text), size=8)


def test_a_csv_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"nope\.csv: no such file"):
        csv(path="nope.csv", size=8)
