"""What an arm trains: a student together with what it learns from."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from understudy.distill.teacher import Teacher


@dataclass(frozen=True)
class Losses:
    """What a step came to.

    Args:
        total: the weighted sum, to call `backward` on.
        parts: each objective's loss by its name, before weighting, without gradient.
        terms: the same with their gradients.
    """

    total: Tensor
    parts: dict[str, Tensor]
    terms: dict[str, Tensor] = field(default_factory=dict)


class Learner(nn.Module):
    """A student with what it learns from: what the loop needs to know of it.

    `forward(images, labels, *, answer, labelled, sample_ids, second, epoch, step)` gives `Losses`; everything in
    `parameters()` is trained. The teacher, where there is one, is no submodule.
    """

    student: nn.Module
    teacher: Teacher | None = None
    teacher_taps: tuple[str, ...] = ()

    @property
    def needs_teacher_logits(self) -> bool:
        """Whether the shared teacher's logits are wanted, not its features alone."""
        return False

    @property
    def takes_second_view(self) -> bool:
        """Whether two views of each image are compared where there are two."""
        return False

    @property
    def exported(self) -> nn.Module:
        """The model that is evaluated and saved in the student's name."""
        return self.student

    def asks_teacher(self, epoch: int) -> bool:
        """Whether the shared teacher's answers are wanted in an epoch, counted from 0."""
        return False

    def weights_at(self, epoch: int) -> dict[str, float]:
        """The weight of each term of the losses in an epoch, counted from 0."""
        return {}

    def weigh(self, terms: Mapping[str, Tensor], epoch: int) -> Tensor:
        """The weighted sum of a step's terms."""
        weights = self.weights_at(epoch)
        return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()

    def hold(self, norms: Mapping[str, float], epoch: int) -> None:
        """Set the weights that are to keep a share of the gradient, from the norms of the terms' gradients."""

    def held(self) -> dict[str, float]:
        """The weights that `hold` set, by name."""
        return {}

    def set_held(self, weights: Mapping[str, float]) -> None:
        """Go back to weights that `held` gave."""

    def describe(self) -> list[str]:
        """What it learns from, one line a term."""
        return []


def gradient_norms(terms: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> dict[str, float]:
    """The norm of each term's gradient with respect to some parameters; the graph is kept for the step itself.

    Args:
        terms: scalars.
        parameters: usually the student's.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    norms = {}
    for name, term in terms.items():
        if not term.requires_grad:
            norms[name] = 0.0
            continue
        gradients = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
        norms[name] = float(nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None]))
    return norms
