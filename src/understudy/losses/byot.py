"""Be your own teacher: a network's deepest layers teach its shallower ones."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import above_zero, in_float32, prepared
from understudy.losses.kd import KD
from understudy.losses.regressor import Regressor


class BYOT(nn.Module):
    """Classifiers on the student's earlier stages learn from the labels, its last logits and its last map.

    For every stage l before the last, with r_l a regressor to the last map's shape and c_l a classifier on its means:
    `Σ_l [(1 - α) CE(c_l(r_l(F_l)), y) + α T² KL(z ‖ c_l(r_l(F_l))) + λ mean (r_l(F_l) - F_L)²]`, the last map F_L and
    the logits z without gradient. No teacher takes part; the classifiers are dropped afterwards.

    Reference: Zhang, Song, Gao, Chen, Bao, Ma, "Be Your Own Teacher: Improve the Performance of Convolutional Neural
    Networks via Self Distillation", ICCV 2019 (https://arxiv.org/abs/1905.08094), equation 6. The authors' early
    branches are of several convolutions, and their squares are summed over positions with a λ that is smaller for it.

    Args:
        temperature: T.
        share: α, what of the learning comes from the last logits.
        features: λ.
    """

    with_logits = "student"

    def __init__(self, *, temperature: float = 3.0, share: float = 0.5, features: float = 0.03) -> None:
        super().__init__()
        if not 0 <= share <= 1:
            raise ValueError(f"share must be between 0 and 1, not {share}")
        self.divergence = KD(temperature=above_zero("temperature", temperature))
        self.share = share
        self.features = features
        self.branches: nn.ModuleList | None = None
        self.classifiers: nn.ModuleList | None = None

    def prepare(self, student: tuple[Tensor, ...], teacher: None) -> None:
        """Make a branch for each stage but the last.

        Args:
            student: example maps, shallow to deep, and logits.
            teacher: there is none.

        Raises:
            ValueError: fewer than two stages, or no maps.
        """
        *maps, logits = student
        if len(maps) < 2 or any(features.ndim != 4 for features in maps):
            raise ValueError("it takes the maps (N, C, H, W) of two stages or more, the deepest last")
        last = maps[-1]
        self.branches = nn.ModuleList(Regressor(features, last) for features in maps[:-1]).to(last)
        self.classifiers = nn.ModuleList(nn.Linear(last.shape[1], logits.shape[1]) for _ in maps[:-1]).to(last)

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, shallow to deep, and (N, K) logits.
            labels: (N,) class numbers or (N, K) probabilities.

        Returns:
            A scalar.
        """
        *maps, last, logits = in_float32(*student)
        last, logits = last.detach(), logits.detach()
        terms = []
        branches = zip(prepared(self.branches), prepared(self.classifiers), maps, strict=True)
        for branch, classifier, features in branches:
            deep = branch(features)
            read = classifier(deep.mean(dim=(2, 3)))
            taught = (1 - self.share) * F.cross_entropy(read, labels) + self.share * self.divergence(read, logits)
            terms.append(taught + self.features * F.mse_loss(deep, last))
        return torch.stack(terms).sum()
