"""Boundary-supporting samples: the teacher's decisions where they change."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32
from understudy.losses.kd import KD


class BSS(nn.Module):
    """The student follows the teacher on images moved across the teacher's decision boundary.

    `KL(softmax(z_t(x') / T) ‖ softmax(z_s(x') / T))` averaged over images x' attacked towards another class k:
    `x ← x + η (f_y - f_k + ε) ∇(f_k - f_y) / ‖∇(f_k - f_y)‖` until the teacher no longer says y. They start from
    images that the teacher classifies rightly, of more than `samples` those on which the models differ most; k is
    drawn by the teacher's probabilities. It costs up to `steps` forward and backward passes of the teacher, and
    another forward of both models.

    Reference: Heo et al., "Knowledge Distillation with Adversarial Samples Supporting Decision Boundary", AAAI 2019
    (https://arxiv.org/abs/1805.05532), and https://github.com/bhheo/BSS_distillation, whose attack
    divides by the norm once where the paper squares it. The paper adds it to the labels and to `KD`, and lets its
    weight fall from 2 to 0 in three quarters of the training.

    Args:
        temperature: T.
        samples: how many images of a batch are attacked at most.
        steps: of the attack, at most.
        step_size: η.
        scores: f, the `logits` as in the authors' code or the `probabilities`.
        limit: pixels stay between -limit and limit, in units of the normalised image.
    """

    def __init__(
        self,
        *,
        temperature: float = 3.0,
        samples: int = 64,
        steps: int = 10,
        step_size: float = 0.3,
        scores: Literal["logits", "probabilities"] = "logits",
        limit: float = 2.5,
    ) -> None:
        super().__init__()
        self.divergence = KD(temperature=temperature, t_squared=False)
        self.samples = samples
        self.steps = steps
        self.step_size = step_size
        self.scores = scores
        self.limit = limit

    @without_autocast
    def forward(
        self,
        student: Tensor,
        teacher: Tensor,
        *,
        inputs: Tensor,
        labels: Tensor,
        student_model: nn.Module,
        teacher_model: nn.Module,
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits, to choose the images by.
            teacher: (N, K) logits, likewise.
            inputs: (N, ...) the images.
            labels: (N,) class numbers.
            student_model: from images to logits; its weights get the gradient.
            teacher_model: from images to logits, in evaluation mode.

        Returns:
            A scalar; 0 where the teacher classifies no image rightly.
        """
        chosen = self._chosen(student.detach(), teacher.detach(), labels)
        if not len(chosen):
            return in_float32(student)[0].sum() * 0.0
        origins = labels[chosen]
        targets = other_classes(teacher.detach()[chosen], origins)
        attacked = self.attack(teacher_model, inputs.detach()[chosen], origins=origins, targets=targets)
        with torch.no_grad():
            of_teacher = teacher_model(attacked)
        return self.divergence(student_model(attacked), of_teacher)

    def attack(self, model: nn.Module, images: Tensor, *, origins: Tensor, targets: Tensor) -> Tensor:
        """Move images across the boundary between two classes.

        Args:
            model: from images to logits.
            images: (N, ...).
            origins: (N,) classes; an image that the model gives another one stays where it is.
            targets: (N,) classes to move towards.

        Returns:
            (N, ...) images.
        """
        for _ in range(self.steps):
            with torch.enable_grad():
                images = images.detach().requires_grad_()
                logits = model(images)
                scores = logits.softmax(dim=1) if self.scores == "probabilities" else logits
                gaps = (scores.gather(1, origins[:, None]) - scores.gather(1, targets[:, None])).squeeze(1)
                (gradient,) = torch.autograd.grad(-gaps.sum(), images)
            images = images.detach()
            moving = logits.argmax(dim=1) == origins
            if not moving.any():
                break
            norms = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
            # Past the boundary by a hair, so that the attack ends.
            lengths = self.step_size * (gaps.detach() + 1e-4).where(moving, 0.0) / norms
            step = lengths.view(-1, *[1] * (images.ndim - 1)) * gradient
            images = (images + step).clamp(-self.limit, self.limit)
        return images

    def _chosen(self, student: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        right = (teacher.argmax(dim=1) == labels).nonzero().squeeze(1)
        if len(right) <= self.samples:
            return right
        of_student, of_teacher = (logits[right].softmax(dim=1) for logits in in_float32(student, teacher))
        differences = (of_teacher - of_student).square().scatter(1, labels[right, None], 0.0)
        return right[differences.sum(dim=1).topk(self.samples).indices]


def other_classes(logits: Tensor, classes: Tensor) -> Tensor:
    """Draw another class for each sample, by the probabilities of the rest.

    Args:
        logits: (N, K).
        classes: (N,) the classes that are not drawn.

    Returns:
        (N,) class numbers.
    """
    others = in_float32(logits)[0].scatter(1, classes[:, None], -torch.inf)
    return torch.multinomial(F.softmax(others, dim=1), 1).squeeze(1)
