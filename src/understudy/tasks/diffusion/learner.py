"""What the training loop trains: a network that is to see through noise what its target says."""

from typing import Any

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.data.source import UNLABELLED
from understudy.distill import Losses
from understudy.distill.learner import Learner
from understudy.tasks.diffusion.guidance import with_guidance
from understudy.tasks.diffusion.process import Denoised, Process, weighted_error
from understudy.tasks.diffusion.settings import Weighting
from understudy.tasks.diffusion.targets import Draw, Target


class Denoising(Learner):
    """A student in a stage: noise is drawn, mixed in, and what the student sees is compared with the target.

    Nothing is clipped in training, neither of the student nor of a teacher.

    Args:
        student: called as `student(z, t, y)`.
        target: what it is compared with.
        process: of the student.
        weighting: of the squared error.
        steps: times are (i + 1) / steps; 0 for any time in [0, 1].
        name: of the loss in logs; the draws of two stages differ with it.
        condition: from the labels to the student's y; None for an unconditional one.
    """

    def __init__(
        self,
        student: nn.Module,
        target: Target,
        *,
        process: Process,
        weighting: Weighting,
        steps: int,
        name: str,
        condition: "Condition | None" = None,
    ) -> None:
        super().__init__()
        self.student = student
        self.target = target
        self.process = process
        self.weighting: Weighting = weighting
        self.steps = steps
        self.name = name
        self.condition = condition
        self.teacher = None

    def forward(self, images: Tensor, labels: Tensor | None = None, *, step: int = 0, **_: Any) -> Losses:
        """One update's loss.

        Args:
            images: (N, C, H, W) in [-1, 1].
            labels: (N,) class numbers, where the student is conditional.
            step: the update's number, counted from 0.
        """
        # The loop has set torch's generator by the update; a number of it and the stage's name make this stage's own.
        number = int(torch.randint(2**62, ()))
        generator = torch.Generator(images.device).manual_seed(randomness.key(self.name, number) & (2**63 - 1))
        self.target.follow(self.student, step)
        found, wanted = self.compare(self.student, images, labels, generator, step)
        error = weighted_error(found, wanted, self.weighting).mean()
        return Losses(error, {self.name: error.detach()})

    def compare(
        self, student: nn.Module, images: Tensor, labels: Tensor | None, generator: torch.Generator, update: int = 0
    ) -> tuple[Denoised, Denoised]:
        """What a student sees in images with noise from a generator, and what it should see."""
        count, device = len(images), images.device
        eps = torch.randn(images.shape, generator=generator, device=device, dtype=images.dtype)
        step = None
        if self.steps:
            step = torch.randint(self.steps, (count,), generator=generator, device=device)
            t = (step + 1).to(images.dtype) / self.steps
        else:
            t = torch.rand(count, generator=generator, device=device, dtype=images.dtype)
        y = None if self.condition is None else self.condition(labels, generator)
        z = self.process.diffuse(images, eps, t)
        return self.process.denoise(student, z, t, y), self.target(z, Draw(images, eps, t, step, update), y)


class Condition:
    """From a batch's labels to what a network is told.

    Args:
        null: the class number that means "no class"; None where the network has none.
        dropout: share of the labels that are replaced by it.
        guidance: lowest and highest strength that is drawn; None where the network takes none.
    """

    def __init__(
        self, *, null: int | None = None, dropout: float = 0.0, guidance: tuple[float, float] | None = None
    ) -> None:
        self.null = null
        self.dropout = dropout
        self.guidance = guidance

    def __call__(self, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """The condition for labels (N,)."""
        assert labels is not None
        if self.null is not None:
            dropped = torch.rand(len(labels), generator=generator, device=labels.device) < self.dropout
            labels = torch.where(dropped | (labels == UNLABELLED), self.null, labels)
        if self.guidance is None:
            return labels
        low, high = self.guidance
        strength = low + (high - low) * torch.rand(len(labels), generator=generator, device=labels.device)
        return with_guidance(labels, strength)
