"""Models side by side: one table and one plot of what they cost and how well they detect."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from understudy.errors import UserError
from understudy.report import format as written
from understudy.tasks.detect.measure import Measured, measure_all

_PLAIN = {"precision", "recall"}


@dataclass(frozen=True)
class Comparison:
    """Several models as they were measured on one split of one data set.

    Args:
        rows: one a model.
        imgsz: the image size.
        split: what the scores were read on.
    """

    rows: tuple[Measured, ...]
    imgsz: int
    split: str

    @property
    def metrics(self) -> list[str]:
        """The scores that the table shows."""
        names = dict.fromkeys(name for row in self.rows for name in row.metrics)
        return [name for name in names if name.split("(")[0] not in _PLAIN]

    def table(self) -> Table:
        """For the terminal."""
        table = Table(box=box.SIMPLE_HEAD, caption=f"{self.split} split, {self.imgsz} px", pad_edge=False)
        table.add_column("model", overflow="fold")
        for heading in ("layers", "params", "MACs", "size", "torch", "onnxruntime", *self.metrics):
            table.add_column(heading, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.name,
                "–" if row.layers is None else str(row.layers),
                written.count(row.parameters),
                written.count(row.macs),
                written.bytes(row.size_bytes),
                written.milliseconds(row.torch_ms),
                written.milliseconds(row.onnxruntime_ms),
                *(written.score(row.metrics.get(name)) for name in self.metrics),
            )
        return table

    def class_table(self) -> dict[str, Any]:
        """mAP50 and mAP50-95 of each class, for the report."""
        names = dict.fromkeys(name for row in self.rows for name in row.classes)
        rows = [
            [row.name, *(f"{row.classes[name]['mAP50']:.3f} / {row.classes[name]['mAP50-95']:.3f}"
                         if name in row.classes else "–" for name in names)]
            for row in self.rows
        ]  # fmt: skip
        return {"columns": ["model", *names], "rows": rows}

    def full_table(self) -> dict[str, Any]:
        """Every number, for the report."""
        columns = ["model", "layers", "parameters", "MACs", "file", "torch", "onnxruntime", *self.metrics]
        rows = [
            [
                row.name,
                "–" if row.layers is None else row.layers,
                written.count(row.parameters),
                written.count(row.macs),
                written.bytes(row.size_bytes),
                written.milliseconds(row.torch_ms),
                written.milliseconds(row.onnxruntime_ms),
                *(written.score(row.metrics.get(name)) for name in self.metrics),
            ]
            for row in self.rows
        ]
        return {"columns": columns, "rows": rows}

    def chart(self) -> dict[str, Any]:
        """Score against latency, the size of a point being that of the file, as a Vega-Lite chart."""
        metric = next((name for name in self.metrics if name.startswith("mAP50")), (self.metrics or ["none"])[0])
        rows = [
            {
                "model": row.name,
                "milliseconds": row.onnxruntime_ms or row.torch_ms,
                "score": row.metrics.get(metric),
                "megabytes": row.size_bytes / 1e6,
            }
            for row in self.rows
        ]
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "description": f"{metric} of each model against the milliseconds that it takes.",
            "data": {"values": rows},
            "width": 480,
            "height": 280,
            "mark": {"type": "circle", "opacity": 0.8},
            "encoding": {
                "x": {"field": "milliseconds", "type": "quantitative", "title": "milliseconds an image"},
                "y": {"field": "score", "type": "quantitative", "title": metric, "scale": {"zero": False}},
                "size": {"field": "megabytes", "type": "quantitative", "title": "MB"},
                "color": {"field": "model", "type": "nominal", "sort": [row.name for row in self.rows], "title": None},
                "tooltip": [{"field": name} for name in ("model", "milliseconds", "score", "megabytes")],
            },
        }  # fmt: skip

    def save(self, folder: Path) -> Path:
        """Write `comparison.json` and `comparison.png`.

        Returns:
            The picture.
        """
        import vl_convert

        folder.mkdir(parents=True, exist_ok=True)
        content = {"imgsz": self.imgsz, "split": self.split, "models": [row.to_json() for row in self.rows]}
        (folder / "comparison.json").write_text(json.dumps(content, indent=2))
        picture = folder / "comparison.png"
        picture.write_bytes(vl_convert.vegalite_to_png(json.dumps(self.chart()), scale=2))
        return picture


def compare(
    weights: Sequence[str | Path] | Mapping[str, str | Path],
    data: str | Path,
    *,
    imgsz: int = 640,
    split: str = "val",
    arguments: Mapping[str, Any] | None = None,
    trust_pickle: bool = False,
) -> Comparison:
    """Measure models side by side on the same machine.

    Args:
        weights: `.pt` or exported files, by name where they have one.
        data: the data YAML, with whole paths.
        imgsz: the image size.
        split: of the data.
        arguments: further ones of ultralytics' validation, such as `device` or `batch`.
        trust_pickle: read a `.pt` that holds other classes than ultralytics'.

    Raises:
        UserError: a file is missing, which is said before any is measured, or cannot be opened.
    """
    named = weights if isinstance(weights, Mapping) else {Path(each).name: each for each in weights}
    if not isinstance(weights, Mapping) and len(named) < len(weights):
        named = {str(each): each for each in weights}
    if not named:
        raise UserError("name at least one file", where="weights")
    if missing := [path for path in named.values() if not Path(path).exists()]:
        raise UserError("no such file; nothing is downloaded", where=missing[0])
    rows = measure_all(named, data=data, imgsz=imgsz, split=split, arguments=arguments, trust_pickle=trust_pickle)
    return Comparison(rows, imgsz, split)
