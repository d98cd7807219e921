"""ultralytics as a guest: every name of it that we use, imported offline, silent and without telemetry.

ultralytics is AGPL-3.0: a program that imports this module is, with it, a combined work under that licence.
"""

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from understudy.errors import UserError

# Read when ultralytics is imported: no look for a network, no telemetry, no pip behind the user's back.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

# ultralytics puts its own function in the place of Pillow's, for every reader in the process: Pillow's is put back.
_open_image = Image.open
try:
    import ultralytics
    from ultralytics import YOLO
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_yolo_dataset
    from ultralytics.data.augment import LetterBox
    from ultralytics.data.build import build_dataloader
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.models.yolo.classify import ClassificationTrainer
    from ultralytics.models.yolo.detect import DetectionTrainer
    from ultralytics.models.yolo.obb import OBBTrainer
    from ultralytics.models.yolo.pose import PoseTrainer
    from ultralytics.models.yolo.segment import SegmentationTrainer
    from ultralytics.nn.autobackend import AutoBackend
    from ultralytics.nn.distill_model import DistillationModel
    from ultralytics.nn.modules import Detect
    from ultralytics.nn.modules.block import C2f, C3k2
    from ultralytics.nn.modules.head import Classify
    from ultralytics.nn.tasks import guess_model_task, load_checkpoint, torch_safe_load
    from ultralytics.utils import DEFAULT_CFG, DEFAULT_CFG_DICT, LOGGER, RANK, USER_CONFIG_DIR
    from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model
except ModuleNotFoundError as error:
    raise UserError(
        f"detectors need ultralytics ({error}): pip install 'understudy[detect]' (it is AGPL-3.0)"
    ) from error

Image.open = _open_image

__all__ = [
    "DEFAULT_CFG", "LOGGER", "TRAINERS", "YOLO", "AutoBackend", "BaseTrainer", "C2f", "C3k2", "Classify", "Detect",
    "DetectionTrainer", "DistillationModel", "LetterBox", "argument_names", "build_dataloader", "build_yolo_dataset",
    "get_cfg", "guess_model_task", "load_checkpoint", "open_yolo", "quiet", "rank",
    "strip_optimizer", "threads_kept", "unwrap_model", "without_lines",
]  # fmt: skip

_VERSIONS = (8, 4), (8, 5)

TRAINERS: dict[str, type[BaseTrainer]] = {
    "detect": DetectionTrainer,
    "segment": SegmentationTrainer,
    "pose": PoseTrainer,
    "obb": OBBTrainer,
    "classify": ClassificationTrainer,
}


def _check_version() -> None:
    version = tuple(int(part) for part in ultralytics.__version__.split(".")[:2])
    if not _VERSIONS[0] <= version < _VERSIONS[1]:
        raise UserError(f"ultralytics is {ultralytics.__version__}, 8.4 is needed: pip install 'ultralytics>=8.4,<8.5'")


def _provide_font() -> None:
    """Put a font where ultralytics looks for Arial: else it asks the network for one at every look at a data set."""
    import matplotlib

    shipped = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        if not (USER_CONFIG_DIR / name).exists() and shipped.exists():
            shutil.copy(shipped, USER_CONFIG_DIR / name)


_check_version()
_provide_font()


def open_yolo(weights: str | Path | YOLO, *, trust_pickle: bool = False) -> YOLO:
    """Open weights (`.pt`), an exported file, or build an untrained model from its `.yaml`.

    A `.pt` is a pickle, which may run code when read: it is first read with the restricted loader that knows
    ultralytics' own classes only.

    Args:
        weights: a path, the name of an architecture such as `yolov8n.yaml`, or an open model, given back as it is.
        trust_pickle: read a `.pt` that holds other classes too.

    Raises:
        UserError: no such file, no weights, or it holds classes that are not ultralytics'.
    """
    if isinstance(weights, YOLO):
        return weights
    path = Path(weights).expanduser()
    if path.suffix in (".yaml", ".yml"):
        try:
            return YOLO(str(weights))
        except FileNotFoundError:
            raise UserError("no such architecture: name one such as yolov8n.yaml", where=weights) from None
        except NotImplementedError:
            raise UserError("is no YOLO: name an architecture such as yolov8n.yaml", where=weights) from None
    if not path.exists():
        raise UserError("no such file; nothing is downloaded: give weights you have, or an architecture such as "
                        "yolov8n.yaml to start untrained", where=weights)  # fmt: skip
    if path.suffix == ".pt" and not trust_pickle:
        try:
            torch_safe_load(str(path), safe_only=True)
        except TypeError as error:
            raise UserError(
                f"cannot be read as ultralytics' own weights ({str(error).splitlines()[0]}); if you know who made the "
                "file, trust_pickle=true reads it and runs what it holds",
                where=weights,
            ) from None
        except AttributeError:
            raise UserError("holds something else than a YOLO model", where=weights) from None
    try:
        return YOLO(str(path))
    except (TypeError, KeyError, AttributeError, RuntimeError) as error:
        raise UserError(f"cannot be opened as a YOLO model ({str(error).splitlines()[0]})", where=weights) from None


def argument_names() -> frozenset[str]:
    """The arguments that ultralytics knows."""
    return frozenset(DEFAULT_CFG_DICT)


def rank() -> int:
    """Of this process among those of a distributed run; -1 outside of one."""
    return RANK


@contextmanager
def quiet(wanted: bool = True) -> Iterator[Any]:
    """Keep ultralytics' own log to warnings inside the block."""
    level = LOGGER.level
    if wanted:
        LOGGER.setLevel("WARNING")
    try:
        yield LOGGER
    finally:
        LOGGER.setLevel(level)


@contextmanager
def threads_kept() -> Iterator[None]:
    """Undo that ultralytics sets torch to one thread fewer than there are processors."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_lines(beginning: str) -> Iterator[None]:
    """Leave lines that begin so out of ultralytics' log inside the block."""

    def passes(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(beginning)

    LOGGER.addFilter(passes)
    try:
        yield
    finally:
        LOGGER.removeFilter(passes)
