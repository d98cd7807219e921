"""How much each layer's channels matter: the detection loss when the smallest of them are silenced."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.tasks.detect.channels import ChannelGraph, Group
from understudy.tasks.detect.data import DetectionData
from understudy.tasks.detect.guest import YOLO, build_dataloader, build_yolo_dataset, get_cfg, quiet
from understudy.tasks.detect.stages import network


@dataclass(frozen=True)
class Sensitivity:
    """What silencing channels does to the loss on validation images.

    Args:
        whole: the loss of the model as it is.
        losses: for each layer, the loss at each ratio of its channels silenced.
    """

    whole: float
    losses: dict[str, dict[float, float]]

    def limits(self, *, rise: float = 0.05) -> dict[str, float]:
        """The largest tried ratio of each layer that raises the loss by no more than a share: `prune(limits=...)`.

        Args:
            rise: the share; a layer that no ratio suits gets 0.
        """
        allowed = self.whole * (1 + rise)
        return {
            layer: max([ratio for ratio, loss in by_ratio.items() if loss <= allowed], default=0.0)
            for layer, by_ratio in self.losses.items()
        }

    def chart(self) -> dict[str, Any]:
        """The rise of the loss by layer and ratio, as a Vega-Lite chart."""
        rows = [
            {"layer": layer, "ratio": ratio, "rise": loss / self.whole - 1}
            for layer, by_ratio in self.losses.items()
            for ratio, loss in by_ratio.items()
        ]
        return {
            "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
            "description": "How much the detection loss rises when channels of one layer are silenced.",
            "data": {"values": rows},
            "height": 12 * len(self.losses),
            "width": 300,
            "mark": "rect",
            "encoding": {
                "y": {"field": "layer", "type": "nominal", "sort": list(self.losses), "title": None},
                "x": {"field": "ratio", "type": "ordinal", "title": "share of channels silenced"},
                "color": {
                    "field": "rise", "type": "quantitative", "title": "rise of the loss",
                    "scale": {"type": "symlog", "constant": 0.01, "scheme": "blues"},
                },
                "tooltip": [{"field": name, "format": ".3f"} for name in ("ratio", "rise")] + [{"field": "layer"}],
            },
        }  # fmt: skip


def sensitivity(
    yolo: YOLO,
    data: DetectionData,
    data_yaml: str,
    *,
    imgsz: int = 640,
    images: int = 32,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
) -> Sensitivity:
    """Scan a detector layer by layer: silence its least important channels, look at the loss, put them back.

    Silencing a channel, its BatchNorm scale and shift to zero, gives exactly what removing it gives.

    Args:
        yolo: a trained model.
        data: its data, whose validation images are used.
        data_yaml: the same with whole paths.
        imgsz: the image size.
        images: how many validation images at most.
        ratios: the shares to silence.

    Raises:
        UserError: a block cannot be pruned.
    """
    if yolo.task == "classify":
        raise UserError("the scan reads a detector's loss: classification weights have none")
    model = cast(Any, network(yolo)).float().cpu()
    graph = ChannelGraph(model)
    try:
        batches = list(_batches(yolo, data, data_yaml, imgsz, images))
        whole = _loss(model, batches)
        losses = {
            group.name: {ratio: _silenced(model, group, ratio, batches) for ratio in ratios} for group in graph.groups
        }
    finally:
        graph.fold()
    return Sensitivity(whole, losses)


def _silenced(model: nn.Module, group: Group, ratio: float, batches: Sequence[Mapping[str, Any]]) -> float:
    silent = torch.zeros(group.size, dtype=torch.bool)
    silent[torch.argsort(group.importance(), stable=True)[: int(ratio * group.size)]] = True
    kept: list[tuple[Tensor, Tensor]] = []
    for scale in group.scales:
        channels = scale.own[silent[scale.places]]
        for values in (scale.norm.weight.data, scale.norm.bias.data):
            kept.append((values, values.clone()))
            values[channels] = 0
    loss = _loss(model, batches)
    for values, before in reversed(kept):
        values.copy_(before)
    return loss


@torch.no_grad()
def _loss(model: Any, batches: Iterable[Mapping[str, Any]]) -> float:
    model.eval()
    total, images = 0.0, 0
    for batch in batches:
        total += float(model.loss(batch)[0].sum())  # a sum over images, as ultralytics has it
        images += len(batch["img"])
    return total / images


def _batches(yolo: YOLO, data: DetectionData, data_yaml: str, imgsz: int, images: int) -> Iterable[dict[str, Any]]:
    settings: Any = get_cfg(overrides={"imgsz": imgsz, "task": yolo.task, "data": data_yaml, "rect": False})
    model = cast(Any, yolo.model)
    model.args = settings
    described = {**data.plain, "names": data.names, "nc": len(data.names), "channels": data.plain.get("channels", 3)}
    with quiet():
        place = [str(each) for each in data.splits["val"]]
        dataset = build_yolo_dataset(settings, place, 8, described, mode="val", stride=32)
        loader = build_dataloader(dataset, batch=8, workers=0, shuffle=False)
    seen = 0
    for batch in loader:
        if seen >= images:
            return
        seen += len(batch["img"])
        yield {**batch, "img": batch["img"].float() / 255}
