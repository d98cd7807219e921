"""What a model file costs and how well it detects, `.pt` or exported, measured as it is."""

import contextlib
import copy
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, cast

import numpy as np
import torch

from understudy.errors import UserError
from understudy.run.measure import multiply_adds, parameter_count
from understudy.tasks.detect.channels import example_images
from understudy.tasks.detect.guest import YOLO, AutoBackend, open_yolo, quiet, threads_kept

Forward = Callable[[], Any]
# How long each forward is timed.
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
    torch_ms: float | None = None
    onnxruntime_ms: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, dict[str, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For results.json."""
        return asdict(self)


def measure(weights: str | Path, *, name: str | None = None, **how: Any) -> Measured:
    """Measure one model.

    Args:
        weights: `.pt` or an exported file.
        name: what to call it; by default the file's name.
        how: as `measure_all` takes it.
    """
    return measure_all({name or Path(weights).name: weights}, **how)[0]


def measure_all(
    weights: Mapping[str, str | Path],
    *,
    data: str | Path | None = None,
    imgsz: int = 640,
    split: str = "val",
    arguments: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> tuple[Measured, ...]:
    """Measure several models on one machine, their latencies in turn.

    Args:
        weights: `.pt` or exported files by name.
        data: the data YAML to score them on; None leaves the scores out.
        imgsz: image size of the scores, multiply-adds and latency.
        split: of the data.
        arguments: further ones of ultralytics' validation, such as `device` or `batch`.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.
    """
    rows: list[Measured] = []
    forwards: dict[tuple[str, str], Forward] = {}
    for name, each in weights.items():
        path = Path(each)
        yolo = open_yolo(path, trust_pickle=trust_pickle)
        facts, own = _of_network(yolo, imgsz) if path.suffix == ".pt" else _of_export(path, imgsz)
        forwards |= {(name, where): forward for where, forward in own.items()}
        scores = evaluate(yolo, data, imgsz=imgsz, split=split, arguments=arguments) if data else ({}, {})
        rows.append(Measured(name, str(path), **facts, size_bytes=_bytes(path), metrics=scores[0], classes=scores[1]))
    found = _in_turn(forwards)
    return tuple(
        replace(row, torch_ms=found.get((row.name, "torch")), onnxruntime_ms=found.get((row.name, "onnxruntime")))
        for row in rows
    )


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


def _of_network(yolo: YOLO, imgsz: int) -> tuple[dict[str, Any], dict[str, Forward]]:
    """What a network consists of, and its forwards in torch and, where that is installed, in onnxruntime."""
    model = cast(Any, copy.deepcopy(yolo.model)).float().cpu().eval()
    images = example_images(model, imgsz)
    leaves = sum(1 for module in model.modules() if not list(module.children()))
    facts = {
        "layers": leaves, "parameters": parameter_count(model), "macs": multiply_adds(model, images),
    }  # fmt: skip
    forwards: dict[str, Forward] = {}
    with tempfile.TemporaryDirectory() as folder:
        exported = _export_for_timing(yolo, Path(folder), imgsz)
        if exported is not None:
            forwards["onnxruntime"] = _onnx_forward(exported, imgsz)
    with quiet():
        fused = model.fuse(verbose=False)
    return facts, {"torch": lambda: fused(images), **forwards}


def _export_for_timing(yolo: YOLO, folder: Path, imgsz: int) -> Path | None:
    """The model as ONNX, or None where the tools are not installed."""
    try:
        import onnx  # noqa: F401 (whether it is there)
        import onnxruntime  # noqa: F401 (likewise)
    except ModuleNotFoundError:
        return None
    from understudy.tasks.detect.export import export
    from understudy.tasks.detect.stages import save

    save(cast(Any, copy.deepcopy(yolo.model)), folder / "model.pt", yolo)
    return export(folder / "model.pt", "onnx", imgsz=imgsz, check=False).path


def _of_export(path: Path, imgsz: int) -> tuple[dict[str, Any], dict[str, Forward]]:
    facts: dict[str, Any] = {"layers": None, "parameters": None, "macs": None}
    if path.suffix == ".onnx":
        return {**facts, "parameters": _onnx_parameters(path)}, {"onnxruntime": _onnx_forward(path, imgsz)}
    return facts, {"torch": _backend_forward(path, imgsz)}


@torch.no_grad()
def _in_turn(forwards: Mapping[tuple[str, str], Forward]) -> dict[tuple[str, str], float]:
    """Median milliseconds of each forward; in turn, so that whatever else a machine does slows all of them alike."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in forwards}
    ends = time.perf_counter() + _SECONDS * len(forwards)
    rounds = 0
    while rounds < 10 or time.perf_counter() < ends:
        for name, forward in forwards.items():
            forward()  # brings its weights back into the caches
            began = time.perf_counter()
            forward()
            times[name].append(time.perf_counter() - began)
        rounds += 1
    return {name: 1000 * median(each) for name, each in times.items()}


def _onnx_forward(path: Path, imgsz: int) -> Forward:
    """A forward of an ONNX model in onnxruntime, with as many threads as torch has."""
    session = onnx_session(path)
    wanted = session.get_inputs()[0]
    shape = [size if isinstance(size, int) else default for size, default in zip(
        wanted.shape, (1, 3, imgsz, imgsz), strict=False)]  # fmt: skip
    images = np.zeros(shape, np.float16 if "float16" in wanted.type else np.float32)
    return lambda: session.run(None, {wanted.name: images})


def onnx_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _onnx_parameters(path: Path) -> int:
    import onnx

    return sum(int(np.prod(tensor.dims)) for tensor in onnx.load(str(path)).graph.initializer)


def _backend_forward(path: Path, imgsz: int) -> Forward:
    """A forward of any exported format by the library that ultralytics runs it with."""
    with quiet(), threads_kept(), _said_plainly(path):
        backend = AutoBackend(str(path), device=torch.device("cpu"), verbose=False)
    images = torch.zeros(1, 3, imgsz, imgsz)
    return lambda: backend(images)


@contextlib.contextmanager
def _said_plainly(path: Path) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise UserError(f"cannot be run here: {str(error).splitlines()[0]}", where=path) from None


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)
