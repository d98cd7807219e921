"""The chain in Python: train, sparsify, prune, fine-tune, distil, export, compare, predict."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.tasks.detect import comparison, stages
from understudy.tasks.detect.comparison import Comparison
from understudy.tasks.detect.data import DetectionData, check_labels, read_data
from understudy.tasks.detect.export import Exported, export
from understudy.tasks.detect.guest import YOLO, open_yolo
from understudy.tasks.detect.methods import Method, read_method
from understudy.tasks.detect.predict import predict
from understudy.tasks.detect.prune import Pruned, Pruning
from understudy.tasks.detect.sensitivity import Sensitivity, sensitivity
from understudy.tasks.detect.sparse import Sparsity
from understudy.train.folder import next_free


class Compressor:
    """A detector on its way to a smaller one; each stage leaves `weights/NAME.pt`, which plain `YOLO()` opens.

    Stages return the compressor, so that they can be chained; each starts from what the one before left.

    Args:
        model: an architecture such as `yolov8n.yaml`, or weights: then no stage has to come before any other.
        data: the data YAML.
        folder: where to write; by default the next number below `runs/detect`.
        trust_pickle: read weights that hold other classes than ultralytics'.
        arguments: ultralytics' own, for every stage: `imgsz`, `batch`, `device`, `workers`, `lr0`, `amp`,
            `close_mosaic`, `patience`, … Each stage takes further ones; `resume=True` in the same folder goes on
            with a training that was broken off.

    Raises:
        UserError: model, data or an argument are wrong.

    Example:
        >>> from understudy.tasks.detect import Compressor  # doctest: +SKIP
        >>> small = Compressor("yolov8n.yaml", "bccd.yaml", imgsz=320, epochs=30)  # doctest: +SKIP
        >>> small.train().sparsify().prune(ratio=0.4).finetune().distill(method="mgd").export("onnx")  # doctest: +SKIP
        >>> small.compare()  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | Path,
        data: str | Path,
        *,
        folder: str | Path | None = None,
        trust_pickle: bool = False,
        **arguments: Any,
    ) -> None:
        stages.training_arguments(arguments)
        self.trust_pickle = trust_pickle
        open_yolo(model, trust_pickle=trust_pickle)
        self.folder = Path(folder) if folder is not None else next_free(Path("runs/detect"))
        self.data, self.data_yaml = prepare_data(data, self.folder)
        self.arguments = arguments
        self.current: str = str(model)
        self.weights: dict[str, Path] = {}
        self.exported: list[Exported] = []
        self.pruned: Pruned | None = None
        self.scales: dict[str, Any] | None = None
        if Path(model).suffix == ".pt":
            self.weights["given"] = Path(model)

    @property
    def model(self) -> YOLO:
        """The model as the last stage left it."""
        return open_yolo(self.current, trust_pickle=self.trust_pickle)

    @property
    def imgsz(self) -> int:
        """The image size of every stage that is not told another."""
        return int(self.arguments.get("imgsz", 640))

    def train(self, **arguments: Any) -> "Compressor":
        """Train; leaves the best epoch's weights in `weights/trained.pt`.

        Args:
            arguments: ultralytics' own.
        """
        start = self.current
        self._do("trained", arguments, lambda place, settings, **how: stages.train(start, place, settings, **how))
        return self._left("trained")

    def sparsify(
        self,
        strength: float = Sparsity.strength,
        *,
        method: Any = Sparsity.method,
        schedule: Any = Sparsity.schedule,
        end: float = Sparsity.end,
        **arguments: Any,
    ) -> "Compressor":
        """Train on with an L1 penalty on BatchNorm scales; leaves `weights/sparse.pt`.

        Args:
            strength: below 1, a share of the optimiser's steps; see `Sparsity`.
            method: `proximal` or `subgradient`.
            schedule: `constant`, `linear` or `cosine`.
            end: the strength at the end, as a share.
            arguments: ultralytics' own.
        """
        sparsity = Sparsity(strength, method, schedule, end)
        start = self.current
        self.scales = self._do(
            "sparse",
            arguments,
            lambda place, settings, **how: stages.sparsify(start, place, settings, sparsity, **how),
        )
        return self._left("sparse")

    def prune(self, ratio: float | None = None, **options: Any) -> "Compressor":
        """Remove channels; leaves `weights/pruned.pt`.

        Args:
            ratio: the share of channels to remove; instead of it `parameters`, `macs` or `latency`, to be left.
            options: of `Pruning`: `scope`, `round_to`, `most`, `limits`, `keep`.
        """
        pruning = make_pruning({"ratio": ratio, "imgsz": self.imgsz, **options})
        path = self.folder / "weights" / "pruned.pt"
        self.pruned = stages.prune_weights(self.current, path, pruning, trust_pickle=self.trust_pickle)
        return self._left("pruned")

    def finetune(self, **arguments: Any) -> "Compressor":
        """Train the pruned model on; leaves `weights/finetuned.pt`.

        Args:
            arguments: ultralytics' own.
        """
        start = self.current
        self._do("finetuned", arguments, lambda place, settings, **how: stages.train(start, place, settings, **how))
        return self._left("finetuned")

    def distill(
        self,
        teacher: str | Path | None = None,
        method: str | Mapping[str, Any] | Method = "mgd",
        *,
        control: bool = True,
        unlabelled: str | None = None,
        unlabelled_batch: int | None = None,
        **arguments: Any,
    ) -> "Compressor":
        """Train on with a teacher; leaves `weights/distilled.pt`, and beside it the control.

        Args:
            teacher: weights, or the name of a stage before; by default `trained`, or what the compressor started from.
            method: a word such as `cwd`, `mgd`, `kd`, `native`, or a mapping with its options.
            control: also train the same student for the same epochs without a teacher (`weights/control.pt`), so
                that what the teacher is worth can be told from what longer training is.
            unlabelled: a folder, image or video of frames without labels.
            unlabelled_batch: how many of them a step takes.
            arguments: ultralytics' own.
        """
        chosen, source = read_method(method), self._teacher(teacher)
        start, frames = self.current, {"unlabelled": unlabelled, "unlabelled_batch": unlabelled_batch}
        self._do(
            "distilled",
            arguments,
            lambda place, settings, **how: stages.distill(start, source, chosen, place, settings, **frames, **how),
        )
        if control:
            self._do("control", arguments, lambda place, settings, **how: stages.train(start, place, settings, **how))
            self.weights["control"] = self.folder / "weights" / "control.pt"
        return self._left("distilled")

    def export(self, format: str = "onnx", **options: Any) -> "Compressor":
        """Export what the last stage left; the file lies beside its weights.

        Args:
            format: ultralytics' name of it.
            options: ultralytics' own: `half`, `int8`, `dynamic`, `nms`, …
        """
        settings = {"imgsz": self.imgsz, "data": self.data_yaml, **options}
        self.exported.append(export(self.current, format, trust_pickle=self.trust_pickle, **settings))
        return self

    def sensitivity(self, **options: Any) -> Sensitivity:
        """Scan how much each layer's channels matter; see `understudy.detect.sensitivity`."""
        return sensitivity(self.model, self.data, str(self.data_yaml), **{"imgsz": self.imgsz, **options})

    def compare(self, weights: Sequence[str | Path] | Mapping[str, str | Path] | None = None) -> Comparison:
        """Measure everything that the stages left, or the files given, on the test split where there is one.

        Args:
            weights: `.pt` or exported files.
        """
        chosen = weights or {**self.weights, **{each.path.name: each.path for each in self.exported}}
        found = comparison.compare(
            chosen, self.data_yaml, imgsz=self.imgsz, split=self.data.test_split,
            arguments={key: self.arguments[key] for key in ("device", "batch") if key in self.arguments},
            trust_pickle=self.trust_pickle,
        )  # fmt: skip
        found.save(self.folder)
        return found

    def predict(self, source: str | Path, **arguments: Any) -> list[Path]:
        """Draw boxes on images, a folder or a video; the pictures are in `predictions/`.

        Args:
            source: what to look at.
            arguments: ultralytics' own.
        """
        settings = {"imgsz": self.imgsz, **arguments}
        return predict(self.current, source, self.folder / "predictions", trust_pickle=self.trust_pickle, **settings)

    def _do(self, name: str, arguments: Mapping[str, Any], train: Callable[..., Any]) -> Any:
        """Train a stage; with `resume`, go on from its last epoch, or leave it where it is done."""
        given = dict(arguments)
        resume = bool(given.pop("resume", False))
        place = stages.Place(self.folder / name, self.folder / "weights" / f"{name}.pt")
        if resume and place.weights.exists():
            return None
        settings = self._with(given)
        return train(place, settings, resume=resume and place.last.exists(), trust_pickle=self.trust_pickle)

    def _with(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        settings = {**self.arguments, **arguments, "data": str(self.data_yaml)}
        stages.training_arguments(settings)
        return settings

    def _left(self, name: str) -> "Compressor":
        self.weights[name] = self.folder / "weights" / f"{name}.pt"
        self.current = str(self.weights[name])
        return self

    def _teacher(self, teacher: str | Path | None) -> Path:
        if teacher is None:
            known = [name for name in ("trained", "given") if name in self.weights]
            if not known or str(self.weights[known[0]]) == self.current:
                raise UserError("name a teacher: its weights, or a stage done before, such as trained")
            return self.weights[known[0]]
        return self.weights.get(str(teacher), Path(teacher))


def make_pruning(options: Mapping[str, Any]) -> Pruning:
    """How much to prune, from options as a person gives them.

    Raises:
        UserError: an option that does not exist, or a value that makes no sense.
    """
    try:
        return Pruning(**options)
    except TypeError as error:
        raise UserError(f"prune: {str(error).rpartition(') ')[2] or error}") from None


def prepare_data(data: str | Path, folder: Path) -> tuple[DetectionData, Path]:
    """Read a data YAML, look at its labels, and write it with whole paths.

    Returns:
        What it says, and the path of the copy. What is merely dirty is warned about, with its count.

    Raises:
        UserError: see `read_data` and `check_labels`.
    """
    found = read_data(data)
    if found.file.is_dir():
        return found, found.file
    for split, dirt in check_labels(found).items():
        for line in dirt.in_words(split):
            warnings.warn(line, stacklevel=3)
    return found, found.write(folder / "data.yaml").resolve()
