"""CIFAR-10 and CIFAR-100 as their author publishes them: Python's pickles, of which only arrays are read."""

import pickle
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from understudy.data.image import DEFAULT_SCALE, Scale, cut, decode
from understudy.data.source import Samples, Source, resident
from understudy.errors import UserError

_FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
_TRAIN = {"cifar10": tuple(f"data_batch_{number}" for number in range(1, 6)), "cifar100": ("train",)}
_TEST = {"cifar10": "test_batch", "cifar100": "test"}
# The file of the class names, and its entry; the entry of the labels.
_NAMES = {"cifar10": ("batches.meta", "label_names"), "cifar100": ("meta", "fine_label_names")}
_LABELS = {"cifar10": "labels", "cifar100": "fine_labels"}
_SIDE = 32
# All that such a file needs, under the names that NumPy has had for it.
_ALLOWED = {"ndarray": "numpy", "dtype": "numpy", "_reconstruct": "numpy._core.multiarray"}


def cifar(
    *,
    dataset: Literal["cifar10", "cifar100"],
    path: str,
    size: int | None = None,
    scale: tuple[float, float] = DEFAULT_SCALE,
) -> Source:
    """Read the unpacked archive that torchvision's and DeiT's code read too.

    Args:
        dataset: which of the two.
        path: `cifar-10-batches-py` or `cifar-100-python`, or the folder that holds it.
        size: height and width to enlarge the images to, for models that were trained on larger ones; by default they
            keep their 32 pixels.
        scale: share of an enlarged image's area that a random training crop keeps, smallest and largest.

    Raises:
        UserError: no such files, or they hold something else.
    """
    root = Path(path).expanduser()
    folder = root / _FOLDERS[dataset] if (root / _FOLDERS[dataset]).is_dir() else root
    file, entry = _NAMES[dataset]
    names = tuple(str(name) for name in _read(folder / file, entry)[entry])
    train = _samples([folder / file for file in _TRAIN[dataset]], _LABELS[dataset], len(names))
    test = _samples([folder / _TEST[dataset]], _LABELS[dataset], len(names))
    if size is not None and size != _SIDE:
        train, test = _enlarged(train, size, scale), _enlarged(test, size, scale)
    return Source(dataset, names, train=train, test=test)


def _enlarged(samples: Samples, size: int, scale: Scale) -> Samples:
    images = samples.read(np.arange(len(samples)), None).permute(0, 2, 3, 1).numpy()
    return Samples(_Enlarged(images, size, scale), samples.labels, (3, size, size))


@dataclass(frozen=True)
class _Enlarged:
    """Reads images (n, 32, 32, 3) at a larger size: in the middle, or, given keys, a random part of each."""

    images: np.ndarray
    size: int
    scale: Scale

    def __call__(self, ids: np.ndarray, keys: np.ndarray | None = None) -> Tensor:
        return torch.stack(decode(self._read, self.images[ids], keys))

    def _read(self, image: np.ndarray, draw: np.ndarray | None) -> Tensor:
        return cut(Image.fromarray(image), self.size, draw, self.scale)


def _samples(files: list[Path], labels: str, classes: int) -> Samples:
    batches = [_read(file, "data", labels) for file in files]
    try:
        images = np.concatenate([batch["data"] for batch in batches]).reshape(-1, 3, _SIDE, _SIDE)
    except ValueError as error:
        raise UserError(f"holds no images of 3 x 32 x 32 ({error})", where=files[0]) from None
    numbers = np.concatenate([np.asarray(batch[labels], np.int64) for batch in batches])
    return resident(images, numbers, where=files[0].parent, classes=classes)


def _read(file: Path, *entries: str) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            content = _Arrays(stream, encoding="latin1").load()  # Python 2 wrote them
    except FileNotFoundError:
        raise UserError("there is no such file: data.path is the unpacked archive", where=file) from None
    except Exception as error:  # whatever a damaged pickle makes of its reader
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"is no file of CIFAR, or is damaged ({reason})", where=file) from None
    if not isinstance(content, dict) or not all(entry in content for entry in entries):
        raise UserError(f"holds no {' and '.join(entries)}: it is another file than CIFAR's", where=file)
    return content


class _Arrays(pickle.Unpickler):
    """Reads plain values and arrays; whatever else a file names is refused, so that nothing in it can run."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if module_name.split(".")[0] == "numpy" and global_name in _ALLOWED:
            return getattr(import_module(_ALLOWED[global_name]), global_name)
        raise pickle.UnpicklingError(f"it names {module_name}.{global_name}, which could run code")
