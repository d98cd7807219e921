"""Half precision: where forwards are run in it, and the scale that keeps float16 gradients from vanishing."""

from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A scale that begins at 65,536 is below anything a gradient needs after so many halvings in a row.
PERSISTENT = 30


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Run what is inside in a recipe's precision: matrix products in half precision, sums in float32.

    Args:
        device: where it runs.
        precision: `fp32`, `bf16` or `fp16`.
    """
    return torch.autocast(device.type, _TYPES.get(precision, torch.bfloat16), enabled=precision in _TYPES)


class Scale:
    """The factor on a float16 loss: halved where gradients overflow, doubled when they have not for 2,000 steps.

    A step whose scaled gradients are not finite is skipped; that is how the factor is found, and no error. When so
    many are skipped in a row that no factor helps, the run has to end: `skipped` counts them.

    Reference: Micikevicius et al., "Mixed Precision Training", ICLR 2018 (https://arxiv.org/abs/1710.03740), section
    3.2; torch.amp.GradScaler.

    Args:
        device: where the model is.
    """

    def __init__(self, device: torch.device) -> None:
        self.scaler = GradScaler(device.type)
        self.skipped = torch.zeros((), device=device)  # in a row, up to now
        self.most = torch.zeros((), device=device)  # in a row, since `begin_again`
        self.left_out = torch.zeros((), device=device)  # steps whose loss was not finite, since then

    @property
    def factor(self) -> float:
        """The present factor."""
        return self.scaler.get_scale()

    def step(self, optimizer: torch.optim.Optimizer, finite: Tensor) -> None:
        """Take the optimiser's step unless gradients are not finite, and adapt the factor.

        Args:
            optimizer: its gradients were scaled back already.
            finite: scalar, whether loss and gradients are.
        """
        self.scaler.step(optimizer)
        self.scaler.update()
        self.skipped = torch.where(finite, torch.zeros_like(self.skipped), self.skipped + 1)
        self.most = torch.maximum(self.most, self.skipped)

    def begin_again(self) -> None:
        """Count for the next epoch; a row of skipped steps goes on through it."""
        self.most, self.left_out = self.skipped, torch.zeros_like(self.left_out)

    def state(self) -> dict[str, Any]:
        """For the checkpoint."""
        counts = {"skipped": self.skipped, "most": self.most, "left_out": self.left_out}
        return {"scaler": self.scaler.state_dict(), **counts}

    def load_state(self, state: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self.scaler.load_state_dict(state["scaler"])
        device = self.skipped.device
        self.skipped, self.most, self.left_out = (state[name].to(device) for name in ("skipped", "most", "left_out"))
