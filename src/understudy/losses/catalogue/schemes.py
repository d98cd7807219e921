"""Schemes by one word: Hinton's loss with another answer to who teaches whom. Imports no torch."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scheme:
    """A way of teaching that has a name.

    Args:
        summary: one sentence.
        paper: authors, title, year.
        link: where to read it.
        needs: what the recipe must have beside the word.
        cost: what it costs beside training one student.
        settings: what the word means, as the mapping that a recipe would have in its place.
        models: the lines of models in an example recipe, where they are not the usual two.
    """

    summary: str
    paper: str
    link: str
    cost: str
    settings: dict[str, Any]
    needs: str = ""
    models: tuple[str, ...] = ("teacher: cnn", "student: {name: cnn, widths: [8, 16]}")


SCHEMES: dict[str, Scheme] = {
    "dml": Scheme(
        summary="Deep mutual learning: two students learn at once, from the labels and from each other; no teacher.",
        paper="Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018",
        link="https://arxiv.org/abs/1706.00384",
        cost="a second student",
        settings={"loss": "kd", "labels": 1.0, "weight": 1.0, "temperature": 1.0, "peers": 1},
    ),
    "takd": Scheme(
        summary="Teacher assistants: models of sizes in between teach each other in a chain that ends at the student.",
        paper="Mirzadeh, Farajtabar, Li, Levine, Matsukawa, Ghasemzadeh: Improved Knowledge Distillation via Teacher "
        "Assistant, AAAI 2020",
        link="https://arxiv.org/abs/1902.03393",
        needs="assistants in the recipe",
        cost="training each assistant",
        settings={"loss": "kd", "labels": 0.1, "weight": 0.9, "temperature": 4.0, "taught_by": "assistant"},
        models=(
            "teacher: {name: cnn, widths: [32, 64]}",
            "assistants: [{name: cnn, widths: [16, 32]}]",
            "student: {name: cnn, widths: [8, 16]}",
        ),
    ),
    "ban": Scheme(
        summary="Born-again networks: each student teaches the next one of its kind.",
        paper="Furlanello, Lipton, Tschannen, Itti, Anandkumar: Born Again Neural Networks, ICML 2018",
        link="https://arxiv.org/abs/1805.04770",
        cost="a student for each further generation",
        settings={"loss": "kd", "labels": 1.0, "weight": 1.0, "temperature": 1.0, "generations": 2},
        models=("teacher: {name: cnn, widths: [8, 16]}", "student: {name: cnn, widths: [8, 16]}"),
    ),
}
