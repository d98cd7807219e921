"""The data YAML of a detector: read, checked and written out with whole paths; imports no torch."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import yaml

from understudy.errors import UserError

_IMAGES = frozenset({
    ".bmp", ".dng", ".heic", ".heif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".tif", ".tiff", ".webp",
})  # fmt: skip
_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class DetectionData:
    """What a data YAML says.

    Args:
        file: the YAML file, or the folder of a classification data set.
        names: class names by number.
        splits: for each split its folders or list files.
        plain: the whole content.
    """

    file: Path
    names: dict[int, str] = field(default_factory=dict)
    splits: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)

    @property
    def test_split(self) -> str:
        """Where scores are read that nothing was chosen by: `test` where there is one."""
        return "test" if "test" in self.splits else "val"

    def write(self, path: Path) -> Path:
        """Write it with whole paths: ultralytics looks for relative ones in the present folder.

        Args:
            path: of the new file.

        Returns:
            The path, or where this is a folder of classes the folder itself.
        """
        if self.file.is_dir():
            return self.file
        splits = {name: [str(place) for place in places] for name, places in self.splits.items()}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump({**self.plain, "path": str(self.file.parent), **splits, "names": self.names}))
        return path


@dataclass
class Dirt:
    """What is merely dirty in a split: counted, said, and left to ultralytics to leave out.

    Args:
        images: how many there are.
        unlabelled: images without a label file, or with an empty one: taken as background.
        outside: boxes that reach out of their image.
        flat: boxes without width or height.
        twice: rows that say the same.
    """

    images: int = 0
    boxes: int = 0
    unlabelled: int = 0
    outside: int = 0
    flat: int = 0
    twice: int = 0

    def in_words(self, split: str) -> list[str]:
        """One line a kind of dirt, none for clean data."""
        said = (
            (self.unlabelled, "images have no boxes: they are trained on as background"),
            (self.outside, "boxes reach out of their image: ultralytics leaves out images whose rows leave [0, 1]"),
            (self.flat, "boxes have no width or no height: they teach nothing"),
            (self.twice, "rows are there twice: one of each is used"),
        )
        return [f"{split}: {count:,} {what}" for count, what in said if count]


def read_data(path: str | Path) -> DetectionData:
    """Read a data YAML; its relative paths are taken from its own folder, then from the present one.

    Raises:
        UserError: no such file, no YAML, keys are missing, or a folder that it names does not exist.
    """
    file = Path(path).expanduser().resolve()
    if file.is_dir():
        return _read_folder(file, path)
    if not file.is_file():
        raise UserError("no such data YAML", where=path)
    try:
        plain = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"is no YAML ({str(error).splitlines()[0]})", where=path) from None
    if not isinstance(plain, dict):
        raise UserError("a data YAML is a mapping with train, val and names", where=path)
    if "val" not in plain and "validation" in plain:
        plain["val"] = plain.pop("validation")
    if missing := [key for key in ("train", "val") if not plain.get(key)]:
        raise UserError(f"'{missing[0]}' is missing: name the folder of its images", where=path)
    splits = {name: _places(plain[name], plain.get("path"), file, name, path) for name in _SPLITS if plain.get(name)}
    return DetectionData(file, _names(plain, path), splits, plain)


def check_labels(data: DetectionData) -> dict[str, Dirt]:
    """Look at every label row of every split.

    Returns:
        What is merely dirty, by split.

    Raises:
        UserError: a split without images, a training split without boxes, a row that is none, or a class beyond the
            list.
    """
    found = {}
    for split in data.splits:
        dirt = Dirt()
        for image in images_of(data, split):
            _look_at(image, data, dirt)
        if not dirt.images:
            raise UserError(f"{split}: no images in {data.splits[split][0]}", where=data.file)
        if split == "train" and not dirt.boxes:
            raise UserError(f"train: none of {dirt.images:,} images has a box (labels are looked for in "
                            f"{label_file(next(images_of(data, split))).parent})", where=data.file)  # fmt: skip
        found[split] = dirt
    return found


def images_of(data: DetectionData, split: str) -> Iterator[Path]:
    """The image files of a split, in order."""
    for place in data.splits[split]:
        if place.is_dir():
            yield from (file for file in sorted(place.rglob("*")) if file.suffix.lower() in _IMAGES)
            continue
        for line in place.read_text().splitlines():
            if line.strip():
                named = Path(line.strip())
                yield named if named.is_absolute() else (place.parent / named).resolve()


def label_file(image: Path) -> Path:
    """Where the labels of an image are: the last `images` of its path replaced by `labels`."""
    parts = list(image.parts)
    places = [index for index, part in enumerate(parts[:-1]) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts).with_suffix(".txt")


def _look_at(image: Path, data: DetectionData, dirt: Dirt) -> None:
    dirt.images += 1
    file = label_file(image)
    rows = file.read_text(encoding="utf-8-sig").splitlines() if file.is_file() else []
    kept = [(number, row.split()) for number, row in enumerate(rows, start=1) if row.strip()]
    if not kept:
        dirt.unlabelled += 1
    seen: set[tuple[str, ...]] = set()
    for number, words in kept:
        values = _values(words, f"{file}:{number}")
        if not 0 <= values[0] < len(data.names):
            raise UserError(
                f"class {values[0]:g} is beyond the list: the data YAML names {len(data.names)} (0 to "
                f"{len(data.names) - 1})",
                where=f"{file}:{number}",
            )
        dirt.boxes += 1
        dirt.twice += tuple(words) in seen
        seen.add(tuple(words))
        if len(values) == 5:
            _, x, y, width, height = values
            dirt.flat += width <= 0 or height <= 0
            edges = (x - width / 2, y - height / 2, 1 - x - width / 2, 1 - y - height / 2)
            dirt.outside += min(edges) < -0.01  # as much as rounding may do, and ultralytics lets pass


def _values(words: list[str], where: str) -> list[float]:
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise UserError("a label row is a class number and numbers for its box", where=where) from None
    if len(values) < 5 or not all(map(isfinite, values)) or values[0] != int(values[0]):
        raise UserError("a label row is 'class x y width height', all but the class in [0, 1]", where=where)
    return values


def _names(plain: dict[str, Any], path: str | Path) -> dict[int, str]:
    names = plain.get("names")
    if names is None and isinstance(plain.get("nc"), int):
        return {number: f"class_{number}" for number in range(plain["nc"])}
    if isinstance(names, dict) and set(names) != set(range(len(names))):
        raise UserError(f"names: number the classes 0 to {len(names) - 1} without gaps", where=path)
    if not names or not isinstance(names, (list, dict)):
        raise UserError("'names' is missing: list the classes", where=path)
    listed = names.items() if isinstance(names, dict) else enumerate(names)
    if isinstance(plain.get("nc"), int) and plain["nc"] != len(names):
        raise UserError(f"nc is {plain['nc']}, but names lists {len(names)}", where=path)
    return {int(number): str(name) for number, name in sorted(listed)}


def _places(value: Any, root: Any, file: Path, split: str, path: str | Path) -> tuple[Path, ...]:
    places = []
    for word in value if isinstance(value, list) else [value]:
        roots = (file.parent / str(root or ""), Path(str(root or "")), file.parent)
        tried = [(each / str(word)).resolve() for each in roots]
        place = next((each for each in tried if each.exists()), None)
        if place is None:
            raise UserError(f"{split}: there is no {tried[0]}", where=path)
        places.append(place)
    return tuple(places)


def _read_folder(folder: Path, path: str | Path) -> DetectionData:
    """A classification data set: a folder with one of class folders for each split."""
    splits = {name: (folder / name,) for name in _SPLITS if (folder / name).is_dir()}
    if "train" not in splits:
        raise UserError("is a folder without train/: give a data YAML", where=path)
    names = sorted(child.name for child in splits["train"][0].iterdir() if child.is_dir())
    return DetectionData(folder, dict(enumerate(names)), splits)
