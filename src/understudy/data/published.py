"""Flowers, Cars and iNaturalist as their authors publish them: the data sets that DeiT is transferred to.

References:
    [1] Nilsback and Zisserman, "Automated flower classification over a large number of classes", ICVGIP 2008.
    [2] Krause, Stark, Deng and Fei-Fei, "3D object representations for fine-grained categorization", 3dRR 2013.
    [3] Van Horn et al., "The iNaturalist species classification and detection dataset", CVPR 2018, arXiv:1707.06642.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import loadmat

from understudy.data.folder import files_as_samples
from understudy.data.image import DEFAULT_SCALE
from understudy.data.source import Samples, Source
from understudy.errors import UserError, did_you_mean


def flowers(*, path: str, size: int, scale: tuple[float, float] = DEFAULT_SCALE) -> Source:
    """Read Flowers-102 [1]: `jpg/image_00001.jpg` and so on, `imagelabels.mat`, `setid.mat`.

    Its training and validation images are both trained on, as in the articles that compare by it (2,040 of them, 6,149
    to test); `data.validation` holds some out.

    Args:
        path: the folder that holds the three, or torchvision's `flowers-102` in it.
        size: height and width of what the models see, in pixels.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: a file is missing or damaged.
    """
    root = _root(path, "flowers-102")
    labels = _mat(root / "imagelabels.mat", "labels")
    parts = {name: _mat(root / "setid.mat", name) for name in ("trnid", "valid", "tstid")}

    def samples(numbers: np.ndarray) -> Samples:
        files = [root / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
        return files_as_samples(files, labels[numbers - 1] - 1, size, scale)

    names = tuple(str(number) for number in range(1, int(labels.max()) + 1))
    train = np.sort(np.concatenate([parts["trnid"], parts["valid"]]))
    return Source("flowers", names, train=samples(train), test=samples(parts["tstid"]))


def cars(*, path: str, size: int, scale: tuple[float, float] = DEFAULT_SCALE) -> Source:
    """Read Stanford Cars [2]: `cars_train`, `cars_test`, `devkit`, and `cars_test_annos_withlabels.mat`.

    Args:
        path: the folder that holds them, or torchvision's `stanford_cars` in it.
        size: height and width of what the models see, in pixels.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: a file is missing or damaged.
    """
    root = _root(path, "stanford_cars")
    in_kit = root / "devkit" / "cars_test_annos_withlabels.mat"
    tables = {"train": root / "devkit" / "cars_train_annos.mat"}
    tables["test"] = in_kit if in_kit.is_file() else root / in_kit.name
    parts = {}
    for split, table in tables.items():
        rows = _mat(table, "annotations", fields=("fname", "class"))
        files = [root / f"cars_{split}" / str(name) for name in rows["fname"]]
        parts[split] = files_as_samples(files, rows["class"].astype(np.int64) - 1, size, scale)
    names = tuple(str(name) for name in _mat(root / "devkit" / "cars_meta.mat", "class_names"))
    return Source("cars", names, **parts)


def inaturalist(*, path: str, size: int, category: str = "name", scale: tuple[float, float] = DEFAULT_SCALE) -> Source:
    """Read iNaturalist [3] of any year: `train2018.json`, `val2018.json` and the images that they name.

    Its validation images are tested on: nobody has the labels of the others.

    Args:
        path: the folder that holds the two files and, of 2018 and 2019, `categories.json` with the names.
        size: height and width of what the models see, in pixels.
        category: what a class is: `name` (the species) or a rank above: `genus`, `family`, `order`, `class`, `phylum`,
            `kingdom`, `supercategory`.
        scale: share of the image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: a file is missing or damaged, or knows no such rank.
    """
    root = Path(path).expanduser()
    tables = {split: _annotations(root, split) for split in ("train", "val")}
    own = root / "categories.json"
    known = _json(own) if own.is_file() else tables["train"]["categories"]
    try:
        kinds = {int(kind["id"]): str(kind[category]) for kind in known}
    except KeyError:
        near = did_you_mean(category, [key for key in known[0] if key != "id"])
        raise UserError(f"there is no '{category}', {near}", where="data.category") from None
    # Of species the order is that of their numbers, of ranks that of the words.
    names = tuple(dict.fromkeys(kinds.values())) if category == "name" else tuple(sorted(set(kinds.values())))
    numbers = {name: number for number, name in enumerate(names)}
    parts = []
    for split, table in tables.items():
        try:
            files = {image["id"]: root / image["file_name"] for image in table["images"]}
            labels = [numbers[kinds[row["category_id"]]] for row in table["annotations"]]
            chosen = [files[row["image_id"]] for row in table["annotations"]]
        except KeyError as error:
            raise UserError(f"the annotations of '{split}' name {error}, which is not listed", where=root) from None
        parts.append(files_as_samples(chosen, labels, size, scale))
    return Source(root.name, names, train=parts[0], validation=parts[1])


def _annotations(root: Path, split: str) -> dict[str, Any]:
    found = sorted(root.glob(f"{split}*.json"))
    if len(found) != 1:
        what = "is no" if not found else "are several"
        raise UserError(f"there {what} {split}YEAR.json in it", where=root)
    table = _json(found[0])
    if not isinstance(table, dict) or not {"images", "annotations", "categories"} <= set(table):
        raise UserError("holds no images, annotations and categories", where=found[0])
    return table


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"is no JSON that can be read ({str(error).splitlines()[0]})", where=file) from None


def _root(path: str, name: str) -> Path:
    root = Path(path).expanduser()
    return root / name if (root / name).is_dir() else root


def _mat(file: Path, entry: str, *, fields: tuple[str, ...] = ()) -> np.ndarray:
    """An array of a MATLAB file."""
    if not file.is_file():
        raise UserError("there is no such file", where=file)
    try:
        array = np.atleast_1d(loadmat(file, squeeze_me=True, variable_names=[entry])[entry])
    except Exception as error:  # whatever a damaged file makes of its reader
        raise UserError(
            f"is no MATLAB file with '{entry}', or is damaged ({type(error).__name__})", where=file
        ) from None
    if not set(fields) <= set(array.dtype.names or ()):
        raise UserError(f"its '{entry}' have no {' and '.join(fields)}", where=file)
    return array if fields or array.dtype.kind in "OU" else array.astype(np.int64)
