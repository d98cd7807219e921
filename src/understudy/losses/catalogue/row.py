"""What a row of the table of losses says."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Loss:
    """A row of the table.

    Args:
        module: where the class lives.
        class_name: its name there; the class's signature says which options it has and what a batch must give.
        summary: one sentence.
        formula: what it computes, in one line.
        paper: authors, title, year.
        link: where to read it.
        source: where the settings of the preset `default` come from.
        presets: settings by name; `default` is what the method's name alone means. `labels` is the weight of cross
            entropy on the labels, `weight` that of the loss, the rest are options of the class.
        taps: what it compares: `logits`, `features` at the ends of stages, the `last` of them, the first two `blocks`
            and the last, or the `embedding`.
        cost: what a step of it costs beside the two forwards.
    """

    module: str
    class_name: str
    summary: str
    formula: str
    paper: str
    link: str
    source: str
    presets: dict[str, dict[str, Any]]
    taps: str = "logits"
    cost: str = "negligible"
