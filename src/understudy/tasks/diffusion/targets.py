"""What a student is to see in a noisy image: the image itself, or what a teacher makes of it.

A target is called with the noisy z, the draw it was made by, and the condition; it gives the `Denoised` the student is
compared with. Teachers are held but are no parameters: nothing here is trained.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from understudy.tasks.diffusion.process import Denoised, Model, Process
from understudy.tasks.diffusion.steps import ddim_step, image_for_jump, move, two_step_target


@dataclass(frozen=True)
class Draw:
    """How a batch of noisy images was made.

    Args:
        x: (N, ...) the images.
        eps: like x, the noise.
        t: (N,) times.
        step: (N,) whole numbers with t = (step + 1) / steps; None where times are continuous.
        update: the number of this update, counted from 0.
    """

    x: Tensor
    eps: Tensor
    t: Tensor
    step: Tensor | None
    update: int


class Target(nn.Module):
    """What a student is compared with. Its state, where it has any, is that of a self-teacher."""

    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """The target for noisy images z."""
        raise NotImplementedError

    def follow(self, student: nn.Module, update: int) -> None:
        """Called before each update with the student as it is."""


class Data(Target):
    """The image and the noise that z was made of: what a teacher is trained on."""

    def __init__(self, process: Process) -> None:
        super().__init__()
        self.process = process

    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """The image, the noise, and the direction they mean."""
        alpha, sigma = self.process.scales(draw.t, z)
        return Denoised(draw.x, draw.eps, alpha * draw.eps - sigma * draw.x)


class Taught(Target):
    """What a teacher sees in z, at whatever time: for a student of another prediction, clock, or with guidance.

    Args:
        teacher: called as `teacher(z, t, y)`.
        teaching: the teacher's process.
    """

    def __init__(self, teacher: Model, teaching: Process) -> None:
        super().__init__()
        self.held = (teacher,)  # in a tuple, so that it does not become a submodule
        self.teaching = teaching

    @torch.no_grad()
    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """The teacher's image, with the noise it means in z."""
        x = self.teaching.denoise(self.held[0], z, draw.t, y).x
        return self.teaching.complete(x, z, draw.t)


class TwoSteps(Target):
    """Progressive distillation: one step of the student ends where two steps of the teacher do.

    Reference: Salimans and Ho, "Progressive Distillation for Fast Sampling of Diffusion Models", ICLR 2022
    (https://arxiv.org/abs/2202.00512).

    Args:
        teacher: called as `teacher(z, t, y)`.
        process: of teacher and student.
        steps: of the student.
    """

    def __init__(self, teacher: Model, process: Process, steps: int) -> None:
        super().__init__()
        self.held = (teacher,)
        self.process = process
        self.steps = steps

    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """The two-step target."""
        assert draw.step is not None
        return two_step_target(self.held[0], z, draw.step, self.steps, y, process=self.process)


class SelfTaught(Target):
    """A target that needs the student itself, as a moving average of its weights.

    Args:
        student: as it starts.
        decay: of the average.
    """

    def __init__(self, student: nn.Module, decay: float) -> None:
        super().__init__()
        self.average = copy.deepcopy(student).eval().requires_grad_(False)
        self.decay = decay
        self.followed: int | None = None

    def train(self, mode: bool = True) -> "SelfTaught":
        """The average always answers in evaluation mode."""
        super().train(mode)
        self.average.eval()
        return self

    @torch.no_grad()
    def follow(self, student: nn.Module, update: int) -> None:
        """Average the student's weights in, once an update however many micro-batches it has.

        The first update finds both equal: there averaging changes nothing.
        """
        if update == self.followed:
            return
        self.followed = update
        for mine, given in zip(self.average.parameters(), student.parameters(), strict=True):
            mine.lerp_(given, 1 - self.decay)


class Consistency(SelfTaught):
    """Consistency distillation: see in z what one sees a step further along the teacher's path.

    The target is what the averaged student sees at s in the z_s to which the teacher's DDIM step leads; at s = 0 that
    is z_s. A student that predicts v or x obeys the boundary condition (at time 0 it sees z) by itself.

    Reference: Song, Dhariwal, Chen and Sutskever, "Consistency Models", ICML 2023, algorithm 2
    (https://arxiv.org/abs/2303.01469).

    Args:
        teacher: called as `teacher(z, t, y)`.
        student: as it starts.
        process: of teacher and student.
        steps: of the teacher.
        decay: of the averaged student.
    """

    def __init__(self, teacher: Model, student: nn.Module, process: Process, *, steps: int, decay: float) -> None:
        super().__init__(student, decay)
        self.held = (teacher,)
        self.process = process
        self.steps = steps

    @torch.no_grad()
    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """What the averaged student sees one step on."""
        assert draw.step is not None
        s = draw.step.to(z.dtype) / self.steps
        z_s = ddim_step(self.held[0], z, draw.t, s, y, process=self.process)
        seen = self.process.denoise(self.average, z_s, s, y).x
        x = torch.where(_at_end(s, z), z_s, seen)
        return self.process.complete(x, z, draw.t)


class Tract(SelfTaught):
    """TRACT: one step of the student goes to the end of its group of the teacher's steps.

    The teacher takes the first step of what is left of the group, the averaged student jumps over the rest, and the
    target is the image with which one step does both. With groups of two and the teacher in the place of the averaged
    student this is progressive distillation.

    Reference: Berthelot et al., "TRACT: Denoising Diffusion Models with Transitive Closure Time-Distillation", 2023
    (https://arxiv.org/abs/2303.04248).

    Args:
        teacher: called as `teacher(z, t, y)`.
        student: as it starts.
        process: of teacher and student.
        teacher_steps: of the teacher.
        steps: of the student, a divisor.
        decay: of the averaged student.
    """

    def __init__(
        self, teacher: Model, student: nn.Module, process: Process, *, teacher_steps: int, steps: int, decay: float
    ) -> None:
        super().__init__(student, decay)
        self.held = (teacher,)
        self.process = process
        self.teacher_steps = teacher_steps
        self.group = teacher_steps // steps

    @torch.no_grad()
    def forward(self, z: Tensor, draw: Draw, y: Any) -> Denoised:
        """The image with which one step leads to the end of the group."""
        assert draw.step is not None
        s = draw.step.to(z.dtype) / self.teacher_steps
        end = (draw.step // self.group * self.group).to(z.dtype) / self.teacher_steps
        z_s = ddim_step(self.held[0], z, draw.t, s, y, process=self.process)
        jumped = move(self.process.denoise(self.average, z_s, s, y), end, self.process)
        z_end = torch.where(_at_end(s - end, z), z_s, jumped)
        return self.process.complete(image_for_jump(z, z_end, draw.t, end, self.process), z, draw.t)


def _at_end(left: Tensor, like: Tensor) -> Tensor:
    return (left == 0).reshape(-1, *[1] * (like.ndim - 1))
