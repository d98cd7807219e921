"""Several models as one: each is asked in its own way, and their probabilities are averaged."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from understudy.data.prepare import Preprocess
from understudy.distill.heads import one_answer
from understudy.distill.taps import stage_ends


@dataclass(frozen=True)
class Member:
    """How one model of an ensemble is asked.

    Args:
        preprocess: from shared pixels to its input.
        columns: for each class, its logit; None where the order is the same.
        share: its part of the mean; shares are divided by their sum.
    """

    preprocess: Preprocess = Preprocess()  # noqa: RUF009 (frozen)
    columns: Sequence[int] | None = None
    share: float = 1.0


class Ensemble(nn.Module):
    """Several classifiers that answer with the weighted mean of their probabilities.

    `forward` gives a mapping: `logits` (N, K), the logarithm of the mean, and `members` (N, M, K), what each said, for
    losses that average at a temperature of their own. Taps reach `members.0` and so on; `auto` means the first's.

    Args:
        members: models that take what their `Member.preprocess` makes of the shared pixels.
        asked: one for each; by default all alike.
    """

    def __init__(self, members: Sequence[nn.Module], asked: Sequence[Member] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.asked = list(asked) if asked is not None else [Member() for _ in members]
        total = sum(member.share for member in self.asked)
        self.shares = tuple(member.share / total for member in self.asked)

    @property
    def tap_points(self) -> tuple[str, ...]:
        """The first member's: features of several models have no mean."""
        return tuple(f"members.0.{path}" for path in stage_ends(self.members[0]))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Ask every member.

        Args:
            images: (N, C, H, W) shared pixels.
        """
        answers = []
        for model, member in zip(self.members, self.asked, strict=True):
            logits = one_answer(model, member.preprocess(images))
            answers.append(logits if member.columns is None else logits[:, list(member.columns)])
        members = torch.stack(answers, dim=1)
        return {"logits": mixture(members, self.shares), "members": members}


def mixture(members: Tensor, shares: Sequence[float], temperature: float = 1.0) -> Tensor:
    """Logits whose softmax at a temperature is the weighted mean of the members' there.

    `T · log Σ_m w_m softmax(z_m / T)`.

    Args:
        members: (N, M, K) logits.
        shares: M weights that sum to one.
        temperature: T.

    Returns:
        (N, K) logits.
    """
    weights = members.new_tensor(shares).log()[:, None]
    mixed = torch.logsumexp(torch.log_softmax(members / temperature, dim=-1) + weights, dim=1)
    return temperature * mixed
