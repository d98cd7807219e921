"""What a run makes of its trained models: costs and scores side by side, the best exported, pictures, relations."""

import json
import shutil
from pathlib import Path
from typing import Any

from understudy.tasks.detect.data import DetectionData
from understudy.tasks.detect.export import export
from understudy.tasks.detect.ledger import Ledger
from understudy.tasks.detect.measure import measure, measure_all
from understudy.tasks.detect.predict import predict, sheet
from understudy.tasks.detect.recipe import DetectRecipe
from understudy.tasks.detect.relations import predict_relations, score_relations


class Outcome:
    """The stages after the last training.

    Args:
        recipe: what is run.
        data: its data.
        data_yaml: the same with whole paths.
        ledger: of the run.
        device: as ultralytics names it.
    """

    def __init__(self, recipe: DetectRecipe, data: DetectionData, data_yaml: Path, ledger: Ledger, device: str) -> None:
        self.recipe = recipe
        self.data = data
        self.data_yaml = data_yaml
        self.ledger = ledger
        self.root = ledger.root
        self.weights = ledger.root / "weights"
        self.device = device

    def compare(self) -> dict[str, Any]:
        """The costs and scores of the models that were not trained once a seed, and of the first seed's arms."""
        names = {"teacher": self._teacher_file()}
        for name in ("sparse", "pruned", "finetuned"):
            if (self.weights / f"{name}.pt").exists():
                names[name] = self.weights / f"{name}.pt"
        names |= {arm: self._arm(arm) for arm in [*self.recipe.controls, *self.recipe.arms]}

        def do() -> dict[str, Any]:
            rows = measure_all(names, trust_pickle=self.recipe.trust_pickle, **self._how_measured)
            return {row.name: row.to_json() for row in rows}

        return self.ledger.stage("compare", [], do)

    def keep_best(self) -> str:
        """Copy the best distilled arm to `student/` and its teacher to `teacher/`.

        Returns:
            The arm of the best mean score on the validation data, which chose its epochs too.
        """
        means = {}
        for arm in self.recipe.arms:
            scores = [_best_validation(self.ledger.folder.arm(arm, seed)) for seed in self.recipe.all_seeds]
            means[arm] = sum(scores) / len(scores)
        best = max(means, key=lambda arm: means[arm])
        for folder, source in (
            ("student", self._arm(best)), ("teacher", self._teacher_file()),
        ):  # fmt: skip
            (self.root / folder).mkdir(exist_ok=True)
            shutil.copy(source, self.root / folder / "model.pt")
        return best

    def exports(self, best: str) -> dict[str, Any]:
        """The best student in other formats, each measured as it is."""
        wanted = self.recipe.stages.export
        if wanted is None:
            return {}

        def do() -> dict[str, Any]:
            rows = {}
            for format in wanted.formats:
                done = export(self._student, format, data=self.data_yaml, imgsz=self.recipe.imgsz, **wanted.options)
                row = measure(done.path, name=f"{best}.{format}", **self._how_measured)
                rows[row.name] = {**row.to_json(), "difference": done.difference}
            return rows

        return self.ledger.stage("export", [], do)

    def predictions(self) -> None:
        """Boxes that the best student finds, drawn on test images."""
        wanted = self.recipe.stages.predict
        if wanted is None:
            return

        def do() -> dict[str, Any]:
            pictures = predict(self._student, self._test_images, self.root / "predictions", most=wanted.images,
                               imgsz=self.recipe.imgsz, device=self.device, **wanted.options)  # fmt: skip
            sheet(pictures, self.root / "predictions.png")
            return {"pictures": [str(picture.relative_to(self.root)) for picture in pictures]}

        self.ledger.stage("predict", [], do)

    def relations(self, best: str) -> None:
        """How well boxes and their parents are found on the test diagrams, by the teacher and the students."""
        wanted = self.recipe.stages.relations
        if wanted is None:
            return
        models = {"teacher": self._teacher_file(), **{arm: self._arm(arm) for arm in [*self.recipe.controls, best]}}

        def do() -> dict[str, Any]:
            options = {"imgsz": self.recipe.imgsz, "device": self.device, **wanted.options}
            scores = score_relations(models, self.data.file.parent, split=self.data.test_split, trace=wanted.trace,
                                     **options)  # fmt: skip
            pictures = predict_relations(self._student, self._test_images, self.root / "relations",
                                         most=wanted.images, **options)  # fmt: skip
            sheet(pictures, self.root / "relations.png")
            return {"scores": scores}

        self.ledger.stage("relations", [], do)

    @property
    def _how_measured(self) -> dict[str, Any]:
        return {
            "data": self.data_yaml, "imgsz": self.recipe.imgsz, "split": self.data.test_split,
            "arguments": {"device": self.device, "workers": self.recipe.train.workers},
        }  # fmt: skip

    @property
    def _student(self) -> Path:
        return self.root / "student" / "model.pt"

    @property
    def _test_images(self) -> Path:
        return self.data.splits[self.data.test_split][0]

    def _arm(self, name: str) -> Path:
        """The weights of an arm's first seed."""
        return self.weights / f"{name}-seed-{self.recipe.seed}.pt"

    def _teacher_file(self) -> Path:
        wanted = self.recipe.stages.distill.teacher
        return self.weights / "trained.pt" if wanted == "trained" else Path(wanted).expanduser()


def _best_validation(folder: Path) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return max(row["validation"]["mAP50-95"] for row in rows if row["kind"] == "eval")
