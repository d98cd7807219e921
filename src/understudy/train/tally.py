"""The losses of an epoch, added up as steps are taken; what is not finite is noticed, and ends the run."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from understudy.errors import RunError
from understudy.train.checkpoint import all_finite
from understudy.train.precision import PERSISTENT, Scale


class Tally:
    """Adds up the losses of an arm.

    Without a wait for the device, but on a CPU: there a loss that is not finite ends the run at its step, elsewhere
    at the epoch's end. In float16 what overflows is left out until the scale has come down; only when that does not
    help does the run end.

    Args:
        name: of the arm.
        scale: of its losses in float16.
    """

    def __init__(self, name: str, scale: Scale | None) -> None:
        self.name = name
        self.scale = scale
        self.sums: dict[str, Tensor] = {}
        self.steps = 0
        self.overflowed: dict[str, Tensor] = {}  # the losses of the last step that float16 could not hold

    def add(self, losses: dict[str, Tensor], norm: Tensor, when: str) -> Tensor:
        """Add a step's losses.

        Args:
            losses: `loss` and its parts; scalars.
            norm: of the step's gradient.
            when: the step, for the message.

        Returns:
            Scalar: whether the step may be taken.

        Raises:
            RunError: it may not, and the run cannot go on.
        """
        if self.scale is not None:
            return self._add_half(self.scale, losses, norm, when)
        # A gradient can overflow where the loss did not: zero times its norm is NaN then, so one test sees both.
        losses = {**losses, "loss": losses["loss"] + norm * 0.0}
        finite = torch.isfinite(losses["loss"])
        if finite.device.type == "cpu" and not finite:
            raise RunError(self._not_finite(losses, when))
        self.add_sums(losses, steps=1)
        return finite

    def _add_half(self, scale: Scale, losses: Mapping[str, Tensor], norm: Tensor, when: str) -> Tensor:
        finite = torch.isfinite(losses["loss"])
        scale.left_out = scale.left_out + (~finite)
        kept = {name: torch.where(finite, value, torch.zeros_like(value)) for name, value in losses.items()}
        for name, value in losses.items():
            self.overflowed[name] = torch.where(finite, self.overflowed.get(name, kept[name]), value)
        self.add_sums(kept, steps=1)
        if finite.device.type == "cpu":
            self._end_if_persistent(scale, when)
        return finite & torch.isfinite(norm)

    def add_sums(self, sums: Mapping[str, Tensor], *, steps: int) -> None:
        """Add the sums of several steps' losses.

        Args:
            sums: `loss` and its parts; scalars.
            steps: how many.
        """
        for name, value in sums.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.steps += steps

    def means(self, when: str, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The means of all losses since the last call, and a check that they and the weights are finite.

        Args:
            when: the epoch, for the message.
            weights: of the model.

        Raises:
            RunError: they are not.
        """
        count: int | Tensor = self.steps
        if self.scale is not None:
            self._end_if_persistent(self.scale, when)
            count = count - self.scale.left_out
            if self.sums and count == 0:
                raise RunError(self._not_finite(self.overflowed, f"in every step {when}"))
            self.scale.begin_again()
        means = {name: (total / count).item() for name, total in self.sums.items()}
        sums, self.sums, self.steps = self.sums, {}, 0
        if not all_finite(sums) or not all_finite(dict(weights)):
            raise RunError(self._not_finite(sums, when))
        return means

    def _end_if_persistent(self, scale: Scale, when: str) -> None:
        if scale.most >= PERSISTENT:
            raise RunError(self._not_finite(self.overflowed, f"{when}, {PERSISTENT} times in a row"))

    def _not_finite(self, parts: Mapping[str, Tensor], when: str) -> str:
        culprits = [f"loss '{name}'" for name, value in parts.items() if name != "loss" and not torch.isfinite(value)]
        what = culprits[0] if culprits else "gradient"
        advice = "A smaller train.lr, or train.clip, often helps"
        if self.scale is not None:
            advice = "train.precision=bf16 holds larger numbers"
        return f"{self.name}: the {what} is not finite {when}; the last checkpoint is kept. {advice}"

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        return {"sums": self.sums, "steps": self.steps}

    def load_state(self, state: dict[str, Any], device: torch.device) -> None:
        """Go back to a saved state."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.steps = state["steps"]
