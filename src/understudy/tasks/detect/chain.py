"""The stages of a run of the chain: each done once, its files guarded by checksums, a broken one resumed."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.tasks.detect import guarded, stages
from understudy.tasks.detect.compressor import make_pruning
from understudy.tasks.detect.data import DetectionData, Dirt
from understudy.tasks.detect.export import export
from understudy.tasks.detect.guest import YOLO, open_yolo
from understudy.tasks.detect.measure import evaluate, measure
from understudy.tasks.detect.methods import Method
from understudy.tasks.detect.predict import predict, sheet
from understudy.tasks.detect.prune import Pruning
from understudy.tasks.detect.recipe import DetectRecipe, SparsifyStage, TrainStage
from understudy.tasks.detect.results import summarise, write_log
from understudy.tasks.detect.sensitivity import sensitivity
from understudy.tasks.detect.sparse import Sparsity
from understudy.train.files import sha256, write_atomically
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.machine import device
from understudy.train.progress import Display

_CONTROL = "student_alone"


class StagesOfRun:
    """One run: where things are, and each stage.

    Args:
        recipe: what is run.
        data: its data.
        dirt: what is merely dirty in it.
        methods: what each distilled arm learns by.
        folder: of the run.
        display: what a person sees.
        stop: whether a signal came.
    """

    def __init__(
        self,
        recipe: DetectRecipe,
        data: DetectionData,
        dirt: Mapping[str, Dirt],
        methods: Mapping[str, Method],
        folder: RunFolder,
        display: Display,
        stop: StopRequest,
    ) -> None:
        self.recipe = recipe
        self.data = data
        self.dirt = dirt
        self.methods = methods
        self.folder = folder
        self.display = display
        self.stop = stop
        self.root = folder.path.resolve()
        self.weights = self.root / "weights"
        self.data_yaml = data.write(self.root / "data.yaml")
        self.device = str(device(self.recipe.train)).replace("cuda:", "").replace("cuda", "0")

    def everything(self) -> dict[str, Any]:
        """Every stage in its order, then the results."""
        wanted = self.recipe.stages
        for split, dirt in self.dirt.items():
            for line in dirt.in_words(split):
                self.display.line(f"data: {line}")
        self.display.line(plan(self.recipe))
        current = self.recipe.model
        if wanted.train:
            current = self._trained("train", "trained", current, wanted.train)
        if wanted.sparsify:
            current = self._sparse(current, wanted.sparsify)
        if wanted.sensitivity:
            self._stage("sensitivity", [], lambda: self._scan(current))
        if wanted.prune:
            start = current
            current = str(self.weights / "pruned.pt")
            self._stage("prune", [Path(current)], lambda: self._prune(start, Path(current)))
        if wanted.finetune:
            current = self._trained("finetune", "finetuned", current, wanted.finetune)
        for seed in self.recipe.all_seeds:
            self._arms(current, seed)
        models = self._compare()
        best = self._best()
        exported = self._exports(best)
        self._predictions()
        return summarise(self.folder, self.recipe, self.dirt, models, exported, best)

    def _stage(self, name: str, files: list[Path], do: Callable[[], Mapping[str, Any] | None]) -> dict[str, Any]:
        """Do a stage unless it is done; what it found and the checksums of what it left are kept with the run.

        Raises:
            UserError: a file of a finished stage is not what the stage left.
        """
        notes = self.root / "stages" / f"{name}.json"
        if name in self.folder.finished_stages:
            noted = json.loads(notes.read_text())
            for file, wanted in noted["sha256"].items():
                path = self.root / file
                if not path.exists() or sha256(path) != wanted:
                    raise UserError(f"is not what the stage '{name}' left: put it back, or start a new run", where=path)
            return noted["found"]
        self.stop.raise_if_asked()
        found = dict(do() or {})
        notes.parent.mkdir(parents=True, exist_ok=True)
        sums = {str(file.relative_to(self.root)): sha256(file) for file in files}
        write_atomically(notes, json.dumps({"found": found, "sha256": sums}, indent=2))
        self.folder.finish_stage(name)
        return found

    def _trained(self, stage: str, name: str, start: str, wanted: TrainStage) -> str:
        place = stages.Place(self.root / "stages" / stage, self.weights / f"{name}.pt")

        def do() -> None:
            arguments = self._arguments(wanted)
            self._guarded(stage, place, wanted.epochs, lambda **how: stages.train(start, place, arguments, **how))

        self._stage(stage, [place.weights], do)
        return str(place.weights)

    def _sparse(self, start: str, wanted: SparsifyStage) -> str:
        place = stages.Place(self.root / "stages" / "sparsify", self.weights / "sparse.pt")
        sparsity = Sparsity(wanted.strength, wanted.method, wanted.schedule, wanted.end)

        def do() -> dict[str, Any]:
            arguments = self._arguments(wanted)
            return self._guarded(
                "sparsify", place, wanted.epochs,
                lambda **how: stages.sparsify(start, place, arguments, sparsity, **how),
            )  # fmt: skip

        self._stage("sparsify", [place.weights], do)
        return str(place.weights)

    def _guarded(self, name: str, place: stages.Place, epochs: int, train: Callable[..., Any]) -> Any:
        """Train, or go on from the last whole checkpoint; the watcher keeps the next ones."""
        state = guarded.restore(place, epochs)
        watch = guarded.Watcher(name, place, self.display, self.stop).callbacks()
        done = train(resume=state == "resume", only_finish=state == "done", watch=watch,
                     trust_pickle=self.recipe.trust_pickle)  # fmt: skip
        guarded.forget_checkpoints(place)
        return done

    def _arguments(self, stage: TrainStage, seed: int | None = None) -> dict[str, Any]:
        machine_of = self.recipe.train
        return {
            "deterministic": True, **self.recipe.args, **stage.options,
            "data": str(self.data_yaml), "epochs": stage.epochs, "imgsz": self.recipe.imgsz, "device": self.device,
            "workers": machine_of.workers, "seed": self.recipe.seed if seed is None else seed,
        }  # fmt: skip

    def _scan(self, weights: str) -> dict[str, Any]:
        wanted = self.recipe.stages.sensitivity
        assert wanted is not None
        yolo = open_yolo(weights, trust_pickle=self.recipe.trust_pickle)
        found = sensitivity(yolo, self.data, str(self.data_yaml), imgsz=self.recipe.imgsz, images=wanted.images,
                            ratios=wanted.ratios)  # fmt: skip
        return {"whole": found.whole, "losses": found.losses, "chart": found.chart()}

    def _prune(self, weights: str, to: Path) -> dict[str, Any]:
        done = stages.prune_weights(weights, to, pruning_of(self.recipe), trust_pickle=self.recipe.trust_pickle)
        self.display.line(f"pruned: {done.in_words()}")
        return {
            "said": done.in_words(), "ratio": done.ratio, "widths": done.widths, "kept": done.kept,
            "before": done.before, "after": done.after,
        }  # fmt: skip

    def _arms(self, start: str, seed: int) -> None:
        wanted = self.recipe.stages.distill
        teacher = str(self.weights / "trained.pt") if wanted.teacher == "trained" else wanted.teacher
        arms: dict[str, Method | None] = dict(self.methods)
        if self.recipe.control == "train":
            arms = {_CONTROL: None, **arms}
        for arm, method in arms.items():
            place = stages.Place(self.folder.arm(arm, seed).resolve(), self.weights / f"{arm}-seed-{seed}.pt")
            self._stage(f"{arm}-seed-{seed}", [place.weights], lambda: self._arm(start, teacher, place, seed, method))  # noqa: B023 (called here)

    def _arm(
        self, start: str, teacher: str, place: stages.Place, seed: int, method: Method | None
    ) -> dict[str, Any]:  # fmt: skip
        wanted = self.recipe.stages.distill
        arguments = self._arguments(wanted, seed)

        def train(**how: Any) -> YOLO:
            if method is None:
                return stages.train(start, place, arguments, **how)
            return stages.distill(start, teacher, method, place, arguments, unlabelled=wanted.unlabelled,
                                  unlabelled_batch=wanted.unlabelled_batch, **how)  # fmt: skip

        name = f"{place.folder.parent.name} seed {seed}"
        self._guarded(name, place, wanted.epochs, train)
        write_log(place.folder)
        return {which: self._scores(place.last.with_name(f"{which}.pt")) for which in ("best", "last")}

    def _scores(self, weights: Path) -> dict[str, float]:
        return evaluate(open_yolo(weights), self.data_yaml, imgsz=self.recipe.imgsz, split=self._split,
                        arguments=self._val)[0]  # fmt: skip

    @property
    def _split(self) -> str:
        return self.data.test_split

    @property
    def _val(self) -> dict[str, Any]:
        return {"device": self.device, "workers": self.recipe.train.workers}

    def _compare(self) -> dict[str, Any]:
        """The costs and scores of the models that were not trained once a seed, and of the first seed's arms."""
        names = {"teacher": self._teacher_file()}
        for name in ("sparse", "pruned", "finetuned"):
            if (self.weights / f"{name}.pt").exists():
                names[name] = self.weights / f"{name}.pt"
        control = [_CONTROL] if self.recipe.control == "train" else []
        for arm in [*control, *self.recipe.arms]:
            names[arm] = self.weights / f"{arm}-seed-{self.recipe.seed}.pt"

        def do() -> dict[str, Any]:
            rows = {}
            for name, path in names.items():
                self.stop.raise_if_asked()
                row = measure(path, name=name, data=self.data_yaml, imgsz=self.recipe.imgsz, split=self._split,
                              arguments=self._val, trust_pickle=self.recipe.trust_pickle)  # fmt: skip
                rows[name] = row.to_json()
            return rows

        return self._stage("compare", [], do)

    def _teacher_file(self) -> Path:
        wanted = self.recipe.stages.distill.teacher
        return self.weights / "trained.pt" if wanted == "trained" else Path(wanted).expanduser()

    def _best(self) -> str:
        """The distilled arm of the best mean score on the validation data, which chose its epochs too."""
        means = {}
        for arm in self.recipe.arms:
            scores = [_best_validation(self.folder.arm(arm, seed)) for seed in self.recipe.all_seeds]
            means[arm] = sum(scores) / len(scores)
        best = max(means, key=lambda arm: means[arm])
        for folder, source in (
            ("student", self.weights / f"{best}-seed-{self.recipe.seed}.pt"), ("teacher", self._teacher_file()),
        ):  # fmt: skip
            (self.root / folder).mkdir(exist_ok=True)
            shutil.copy(source, self.root / folder / "model.pt")
        return best

    def _exports(self, best: str) -> dict[str, Any]:
        wanted = self.recipe.stages.export
        if wanted is None:
            return {}

        def do() -> dict[str, Any]:
            rows = {}
            for format in wanted.formats:
                done = export(self.root / "student" / "model.pt", format, data=self.data_yaml,
                              imgsz=self.recipe.imgsz, **wanted.options)  # fmt: skip
                row = measure(done.path, name=f"{best}.{format}", data=self.data_yaml, imgsz=self.recipe.imgsz,
                              split=self._split, arguments=self._val)  # fmt: skip
                rows[row.name] = {**row.to_json(), "difference": done.difference}
            return rows

        return self._stage("export", [], do)

    def _predictions(self) -> None:
        wanted = self.recipe.stages.predict
        if wanted is None:
            return

        def do() -> dict[str, Any]:
            source = self.data.splits[self._split][0]
            pictures = predict(self.root / "student" / "model.pt", source, self.root / "predictions",
                               most=wanted.images, imgsz=self.recipe.imgsz, device=self.device,
                               **wanted.options)  # fmt: skip
            sheet(pictures, self.root / "predictions.png")
            return {"pictures": [str(picture.relative_to(self.root)) for picture in pictures]}

        self._stage("predict", [], do)


def pruning_of(recipe: DetectRecipe) -> Pruning:
    """How much a recipe prunes."""
    assert recipe.stages.prune is not None
    return make_pruning({**recipe.stages.prune.model_dump(exclude_none=True), "imgsz": recipe.imgsz})


def _best_validation(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(row["validation"]["mAP50-95"] for row in rows if row["kind"] == "eval")


def plan(recipe: DetectRecipe) -> str:
    """What will be trained, in one line."""
    wanted = recipe.stages
    once = {name: getattr(wanted, name).epochs for name in ("train", "sparsify", "finetune") if getattr(wanted, name)}
    arms = len(recipe.arms) + (recipe.control == "train")
    each = wanted.distill.epochs
    total = sum(once.values()) + arms * recipe.seeds * each
    before = ", ".join(f"{name} {epochs}" for name, epochs in once.items())
    return (
        f"plan: {before + ' epochs, then ' if before else ''}{arms} students ({', '.join(recipe.arms)}"
        f"{', the control' if recipe.control == 'train' else ''}) x {recipe.seeds} seeds x {each} epochs = "
        f"{total} epochs"
    )
