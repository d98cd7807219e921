"""Stand-ins for networks in the recorded diffusion cases: formulas whose answers are known."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from understudy.tasks.diffusion.process import Process, spread
from understudy.tasks.diffusion.steps import two_step_target


class Raw(nn.Module):
    """The stand-in of a network: a z + b tanh(z) + c logsnr / 20 + d; for `both`, two of them on the channels."""

    def __init__(self, constants: list[Tensor], process: Process) -> None:
        super().__init__()
        self.constants = constants
        self.process = process

    def forward(self, z: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """The network's output."""
        return self.at(z, self.process.logsnr(t))

    def at(self, z: Tensor, logsnr: Tensor) -> Tensor:
        """The output at a logsnr (N,)."""
        parts = [
            a * z + b * torch.tanh(z) + c * spread(logsnr, z) / 20 + d
            for a, b, c, d in (constants.unbind() for constants in self.constants)
        ]
        return torch.cat(parts, dim=1)


class Gauss:
    """The best denoiser of data that are normal, of mean `mu` and deviation `s`: it gives x."""

    def __init__(self, mu: float, s: float, process: Process) -> None:
        self.mu, self.s, self.process = mu, s, process

    def __call__(self, z: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """The posterior mean of the image."""
        alpha, sigma = self.process.scales(t, z)
        return (alpha * self.s**2 * z + sigma**2 * self.mu) / (alpha**2 * self.s**2 + sigma**2)


class PerfectStudent:
    """A student of N steps that gives the two-step target of its teacher at every one of its times.

    Args:
        teacher: of 2N steps, giving x.
        steps: N.
        process: with the prediction x.
    """

    def __init__(self, teacher: Callable[..., Tensor], steps: int, process: Process) -> None:
        self.teacher, self.steps, self.process = teacher, steps, process

    def __call__(self, z: Tensor, t: Tensor, y: Any = None) -> Tensor:
        """The target's x."""
        step = (t * self.steps).round().long() - 1
        return two_step_target(self.teacher, z, step, self.steps, y, process=self.process).x
