"""Every loss by its recipe name, with what a person wants to know before choosing it. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loss:
    """A row of the table.

    Args:
        module: where the class lives.
        class_name: its name there; the class's signature says which options it has.
        summary: one sentence.
        formula: what it computes, in one line.
        paper: authors, title, year.
        link: where to read it.
        taps: what it compares: `logits`, `features` or `embedding`.
        cost: what a step of it costs beside the two forwards.
        presets: settings by name; `default` is the paper's. `labels` is the weight of cross entropy on the labels,
            `weight` that of the loss, the rest are options of the class.
    """

    module: str
    class_name: str
    summary: str
    formula: str
    paper: str
    link: str
    taps: str = "logits"
    cost: str = "negligible"
    presets: dict[str, dict[str, Any]] = field(default_factory=lambda: {"default": {}})


LOSSES: dict[str, Loss] = {
    "kd": Loss(
        module="understudy.losses.kd",
        class_name="KD",
        summary="The student's softened probabilities follow the teacher's.",
        formula="T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))",
        paper="Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015",
        link="https://arxiv.org/abs/1503.02531",
        presets={
            "default": {"labels": 0.1, "weight": 0.9, "temperature": 4.0},
            "seed-000": {"labels": 0.3, "weight": 0.7, "temperature": 7.0, "t_squared": False},
            "seed-000-function": {"labels": 0.7, "weight": 0.6, "temperature": 7.0, "reduction": "mean"},
            "seed-001": {"labels": 0.3, "weight": 0.7, "temperature": 10.0},
            "seed-004": {"labels": 0.1, "weight": 0.9, "temperature": 10.0},
            "cls-kd": {"labels": 0.5, "weight": 0.5, "temperature": 4.0, "cross_entropy": True},
            "deit-soft": {"labels": 0.5, "weight": 0.5, "temperature": 3.0, "reduction": "mean"},
        },
    ),
    "logits": Loss(
        module="understudy.losses.logits",
        class_name="LogitMSE",
        summary="The student's logits follow the teacher's, number by number.",
        formula="mean (z_s - z_t)²",
        paper="Ba, Caruana: Do Deep Nets Really Need to be Deep?, NeurIPS 2014",
        link="https://arxiv.org/abs/1312.6184",
        presets={"default": {"labels": 1.0, "weight": 1.0}},
    ),
    "hard": Loss(
        module="understudy.losses.hard",
        class_name="HardLabel",
        summary="The teacher's decision is taken as a second label.",
        formula="CE(z_s, argmax z_t)",
        paper="Touvron et al.: Training data-efficient image transformers, ICML 2021",
        link="https://arxiv.org/abs/2012.12877",
        presets={"default": {"labels": 0.5, "weight": 0.5}},
    ),
}
