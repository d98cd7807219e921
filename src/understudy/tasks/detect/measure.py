"""What a model file costs and how well it detects, `.pt` or exported, measured as it is."""

import contextlib
import copy
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from understudy.errors import UserError
from understudy.run.measure import latency, multiply_adds, parameter_count
from understudy.tasks.detect.channels import example_images
from understudy.tasks.detect.guest import YOLO, AutoBackend, open_yolo, quiet, threads_kept

_SECONDS = 0.5


@dataclass(frozen=True)
class Measured:
    """One row of a comparison.

    Args:
        name: what it is called in the table.
        file: the weights.
        layers: modules without children; None of an exported file.
        parameters: likewise (of ONNX, the numbers in its initialisers).
        macs: multiply-adds of one image; None of an exported file.
        size_bytes: of the file or folder.
        torch_ms: median milliseconds of a forward in torch, layers fused as for use; of other formats in their own.
        onnxruntime_ms: the same in onnxruntime, where the model is ONNX or could be exported to it.
        metrics: scores on the split, `mAP50` and `mAP50-95` among them.
        classes: for each class its scores.
    """

    name: str
    file: str
    layers: int | None
    parameters: int | None
    macs: int | None
    size_bytes: int
    torch_ms: float | None
    onnxruntime_ms: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def measure(
    weights: str | Path,
    *,
    name: str | None = None,
    data: str | Path | None = None,
    imgsz: int = 640,
    split: str = "val",
    arguments: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> Measured:
    """Measure one model.

    Args:
        weights: `.pt` or an exported file.
        name: what to call it; by default the file's name.
        data: the data YAML to score it on; None leaves the scores out.
        imgsz: image size of the scores, multiply-adds and latency.
        split: of the data.
        arguments: further ones of ultralytics' validation, such as `device` or `batch`.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.
    """
    path = Path(weights)
    yolo = open_yolo(path, trust_pickle=trust_pickle)
    sizes = _of_network(yolo, imgsz) if path.suffix == ".pt" else _of_export(path, imgsz)
    metrics, classes = evaluate(yolo, data, imgsz=imgsz, split=split, arguments=arguments) if data else ({}, {})
    return Measured(name or path.name, str(path), size_bytes=_bytes(path), metrics=metrics, classes=classes, **sizes)


def evaluate(
    yolo: YOLO,
    data: str | Path,
    *,
    imgsz: int,
    split: str = "val",
    arguments: Mapping[str, Any] | None = None,
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Score a model on a split by ultralytics' own validation.

    Returns:
        Scores of all classes, and of each.
    """
    with tempfile.TemporaryDirectory() as folder, quiet(), threads_kept():
        settings = {"plots": False, "verbose": False, **(arguments or {}), "imgsz": imgsz, "split": split}
        found = yolo.val(data=str(data), project=folder, name="val", exist_ok=True, **settings)
    scores = {_plain(key): float(value) for key, value in found.results_dict.items() if key != "fitness"}
    if not hasattr(found, "ap_class_index"):
        return scores, {}
    classes = {}
    for place, number in enumerate(found.ap_class_index):
        precision, recall, ap50, ap = (float(value) for value in found.class_result(place)[:4])
        classes[str(found.names[int(number)])] = {
            "precision": precision, "recall": recall, "mAP50": ap50, "mAP50-95": ap,
        }  # fmt: skip
    return scores, classes


def _plain(key: str) -> str:
    """`metrics/mAP50(B)` is `mAP50`; of masks and poses, `mAP50(M)` and `mAP50(P)`."""
    return key.removeprefix("metrics/").removesuffix("(B)")


def _of_network(yolo: YOLO, imgsz: int) -> dict[str, Any]:
    model = cast(Any, copy.deepcopy(yolo.model)).float().cpu().eval()
    images = example_images(model, imgsz)
    leaves = sum(1 for module in model.modules() if not list(module.children()))
    facts = {
        "layers": leaves, "parameters": parameter_count(model), "macs": multiply_adds(model, images),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        in_onnxruntime = None
        exported = _export_for_timing(yolo, Path(folder), imgsz)
        if exported is not None:
            in_onnxruntime = onnx_latency(exported, imgsz)
    with quiet():
        fused = model.fuse(verbose=False)
    return {**facts, "torch_ms": latency(fused, images, _SECONDS), "onnxruntime_ms": in_onnxruntime}


def _export_for_timing(yolo: YOLO, folder: Path, imgsz: int) -> Path | None:
    """The model as ONNX, or None where the tools are not installed."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ModuleNotFoundError:
        return None
    from understudy.tasks.detect.export import export
    from understudy.tasks.detect.stages import save

    save(cast(Any, copy.deepcopy(yolo.model)), folder / "model.pt", yolo)
    return export(folder / "model.pt", "onnx", imgsz=imgsz, check=False).path


def _of_export(path: Path, imgsz: int) -> dict[str, Any]:
    facts: dict[str, Any] = {"layers": None, "parameters": None, "macs": None}
    if path.suffix == ".onnx":
        return {**facts, "parameters": _onnx_parameters(path), "torch_ms": None,
                "onnxruntime_ms": onnx_latency(path, imgsz)}  # fmt: skip
    return {**facts, "torch_ms": _backend_latency(path, imgsz), "onnxruntime_ms": None}


def onnx_latency(path: Path, imgsz: int) -> float:
    """Median milliseconds of an ONNX model in onnxruntime, with as many threads as torch has."""
    session = onnx_session(path)
    wanted = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else default for size, default in zip(
        wanted.shape, (1, 3, imgsz, imgsz), strict=False)]  # fmt: skip
    images = np.zeros(shape, np.float16 if "float16" in wanted.type else np.float32)
    times = []
    ends = time.perf_counter() + _SECONDS
    while len(times) < 10 or time.perf_counter() < ends:
        began = time.perf_counter()
        session.run(None, {wanted.name: images})
        times.append(time.perf_counter() - began)
    return 1000 * median(times[len(times) // 5 :])


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _onnx_parameters(path: Path) -> int:
    import onnx

    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer)


def _backend_latency(path: Path, imgsz: int) -> float | None:
    """Milliseconds of any exported format by the library that ultralytics runs it with."""
    with quiet(), threads_kept(), _said_plainly(path):
        backend = AutoBackend(str(path), device=torch.device("cpu"), verbose=False)
        return latency(cast(nn.Module, backend), torch.zeros(1, 3, imgsz, imgsz), _SECONDS)


@contextlib.contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"cannot be run here: {str(error).splitlines()[0]}", where=path) from None


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
