"""Export to other formats by ultralytics' exporter; ONNX is checked against torch number by number."""

import copy
import warnings
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from understudy.errors import RunError, UserError, did_you_mean
from understudy.tasks.detect.guest import YOLO, argument_names, open_yolo, quiet, threads_kept
from understudy.tasks.detect.measure import onnx_session

# What must be installed for a format; ultralytics would install it by itself, which we have switched off.
_TOOLS = {
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("openvino",),
    "engine": ("tensorrt", "onnx"),
    "coreml": ("coremltools",),
    "saved_model": ("tensorflow",),
    "pb": ("tensorflow",),
    "edgetpu": ("tensorflow",),
    "paddle": ("paddlepaddle", "x2paddle"),
    "mnn": ("MNN",),
    "ncnn": ("ncnn", "pnnx"),
    "rknn": ("rknn-toolkit2",),
    "executorch": ("executorch",),
}
# The largest difference of an output to torch's, as a share of the largest output.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Exported:
    """An exported model.

    Args:
        path: the file or folder.
        difference: of ONNX in full precision, the largest difference to torch's outputs as a share of the largest one.
    """

    path: Path
    difference: float | None = None


def export(
    weights: str | Path | YOLO,
    format: str = "onnx",
    *,
    data: str | Path | None = None,
    check: bool = True,
    trust_pickle: bool = False,
    **options: Any,
) -> Exported:
    """Export a model beside its weights.

    Args:
        weights: the `.pt`.
        format: ultralytics' name of it: onnx, torchscript, openvino, engine, coreml, …
        data: the data YAML whose training images calibrate `int8`.
        check: compare ONNX's outputs with torch's.
        trust_pickle: read weights that hold other classes than ultralytics'.
        options: ultralytics' own: `imgsz`, `half`, `int8`, `dynamic`, `nms`, `simplify`, `opset`, `batch`, …

    Raises:
        UserError: no such format or option, its tools are not installed, or int8 without data.
        RunError: ONNX computes something else than torch.
    """
    yolo = open_yolo(weights, trust_pickle=trust_pickle)
    formats = _formats()
    if format not in formats:
        raise UserError(f"no export format '{format}', {did_you_mean(format, formats)}")
    missing = [tool for tool in _TOOLS.get(format, ()) if not _is_installed(tool)]
    if missing:
        raise UserError(f"{format} needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    settings = _settings(format, data, options)
    network = copy.deepcopy(yolo.model)
    try:
        with quiet(), threads_kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's tracer and its successors: nothing that a user can act on
            path = Path(yolo.export(format=format, **settings))
    except (ImportError, ModuleNotFoundError) as error:
        raise UserError(f"{format} needs what is not installed: {str(error).splitlines()[0]}") from None
    except (SyntaxError, TypeError, ValueError, AssertionError) as error:
        raise UserError(f"{format}: {str(error).strip().splitlines()[0]}") from None
    comparable = format == "onnx" and not settings.get("nms") and settings.get("quantize") is None
    difference = _difference(cast(Any, network), path, settings) if check and comparable else None
    if difference is not None and difference > _TOLERANCE:
        raise RunError(f"{path}: differs from torch by {difference:.2g} of the largest output")
    return Exported(path, difference)


def _settings(format: str, data: str | Path | None, options: dict[str, Any]) -> dict[str, Any]:
    known = argument_names() | {"half", "int8"}
    if unknown := [name for name in options if name not in known]:
        raise UserError(f"unknown option '{unknown[0]}', {did_you_mean(unknown[0], known)}")
    settings = dict(options)
    half, int8 = settings.pop("half", None), settings.pop("int8", None)
    if int8:
        if data is None:
            raise UserError("int8 is calibrated on images: give the data YAML (data=)")
        # ultralytics would calibrate on the validation images, which scores are then read on.
        settings |= {"quantize": 8, "data": str(data), "split": "train"}
    elif half:
        settings["quantize"] = 16
    if format == "onnx" and not _is_installed("onnxslim"):
        settings.setdefault("simplify", False)
    return settings


def _difference(model: Any, path: Path, settings: dict[str, Any]) -> float:
    """The largest difference of any output on noise, as a share of the largest one."""
    session = onnx_session(path)
    wanted = session.get_inputs()[0]
    size = settings.get("imgsz", 640)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    shape = [given if isinstance(given, int) else default for given, default in zip(
        wanted.shape, (1, 3, height, width), strict=True)]  # fmt: skip
    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    found = session.run(None, {wanted.name: images})
    model = model.float().cpu().eval()
    with torch.no_grad():
        outputs = model(torch.from_numpy(images))
    expected = outputs[0] if isinstance(outputs, (tuple, list)) else outputs
    expected = expected[0] if isinstance(expected, (tuple, list)) else expected
    values = expected.numpy()
    return float(np.abs(found[0] - values).max() / max(np.abs(values).max(), 1e-12))


def _formats() -> list[str]:
    from ultralytics.engine.exporter import export_formats

    return [name for name in export_formats()["Argument"] if name != "-"]


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return package == "onnxruntime" and _is_installed("onnxruntime-gpu")
    return True
