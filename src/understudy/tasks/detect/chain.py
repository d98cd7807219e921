"""The stages of a run of the chain in their order: each done once, a broken training resumed."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from understudy.tasks.detect import guarded, stages
from understudy.tasks.detect.compressor import make_pruning
from understudy.tasks.detect.data import DetectionData, Dirt
from understudy.tasks.detect.guest import YOLO, open_yolo
from understudy.tasks.detect.ledger import Ledger
from understudy.tasks.detect.measure import evaluate
from understudy.tasks.detect.methods import Method
from understudy.tasks.detect.outcome import Outcome
from understudy.tasks.detect.prune import Pruning
from understudy.tasks.detect.recipe import DetectRecipe, SparsifyStage, TrainStage
from understudy.tasks.detect.results import summarise, write_log
from understudy.tasks.detect.sensitivity import sensitivity
from understudy.tasks.detect.sparse import Sparsity
from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.machine import device
from understudy.train.progress import Display


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
        self.ledger = Ledger(folder, stop)
        self.root = self.ledger.root
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
            self.ledger.stage("sensitivity", [], lambda: self._scan(current))
        if wanted.prune:
            start = current
            current = str(self.weights / "pruned.pt")
            self.ledger.stage("prune", [Path(current)], lambda: self._prune(start, Path(current)))
        if wanted.finetune:
            current = self._trained("finetune", "finetuned", current, wanted.finetune)
        for seed in self.recipe.all_seeds:
            self._arms(current, seed)
        outcome = Outcome(self.recipe, self.data, self.data_yaml, self.ledger, self.device)
        models = outcome.compare()
        best = outcome.keep_best()
        exported = outcome.exports(best)
        outcome.predictions()
        outcome.relations(best)
        return summarise(self.folder, self.recipe, self.dirt, models, exported, best, split=self.data.test_split)

    def _trained(self, stage: str, name: str, start: str, wanted: TrainStage) -> str:
        place = stages.Place(self.root / "stages" / stage, self.weights / f"{name}.pt")

        def do() -> None:
            arguments = self._arguments(wanted)
            self._guarded(stage, place, wanted.epochs, lambda **how: stages.train(start, place, arguments, **how))

        self.ledger.stage(stage, [place.weights], do)
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

        self.ledger.stage("sparsify", [place.weights], do)
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
        arms: dict[str, Method | None] = {**dict.fromkeys(self.recipe.controls), **self.methods}
        for arm, method in arms.items():
            place = stages.Place(self.folder.arm(arm, seed).resolve(), self.weights / f"{arm}-seed-{seed}.pt")
            self.ledger.stage(
                f"{arm}-seed-{seed}", [place.weights],
                lambda: self._arm(start, teacher, place, seed, method),  # noqa: B023 (called here)
            )  # fmt: skip

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
        return evaluate(open_yolo(weights), self.data_yaml, imgsz=self.recipe.imgsz, split=self.data.test_split,
                        arguments={"device": self.device, "workers": self.recipe.train.workers})[0]  # fmt: skip


def pruning_of(recipe: DetectRecipe) -> Pruning:
    """How much a recipe prunes."""
    assert recipe.stages.prune is not None
    return make_pruning({**recipe.stages.prune.model_dump(exclude_none=True), "imgsz": recipe.imgsz})


def plan(recipe: DetectRecipe) -> str:
    """What will be trained, in one line."""
    wanted = recipe.stages
    once = {name: getattr(wanted, name).epochs for name in ("train", "sparsify", "finetune") if getattr(wanted, name)}
    arms = len(recipe.arms) + len(recipe.controls)
    each = wanted.distill.epochs
    total = sum(once.values()) + arms * recipe.seeds * each
    before = ", ".join(f"{name} {epochs}" for name, epochs in once.items())
    return (
        f"plan: {before + ' epochs, then ' if before else ''}{arms} students ({', '.join(recipe.arms)}"
        f"{', the control' if recipe.controls else ''}) x {recipe.seeds} seeds x {each} epochs = "
        f"{total} epochs"
    )
