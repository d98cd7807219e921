"""Cross-layer distillation with semantic calibration: which teacher layer suits which student layer is learned."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, check_map, pool_to_smaller, several, without_autocast
from understudy.losses.functional import gram, prepared


class SemCKD(nn.Module):
    """Every student layer follows a mix of all teacher layers, weighed for each sample by attention.

    With r projections of student layer i for teacher layer j and α_ij the attention of a sample's similarities to the
    batch at both layers: `Σ_ij mean_n α_ij mean (r_ij(F_s,i) - F_t,j)² / L` for L student layers.

    Reference: Chen, Mei, Zhang, Wang, Feng, Chen, "Cross-Layer Distillation with Semantic Calibration", AAAI 2021
    (https://arxiv.org/abs/2012.03236), equations 4 to 9; code https://github.com/DefangChen/SimKD. There the
    attention reads a sample's similarities in the order of the batch and is as wide as the batch; ours reads their
    quantiles, from the least to the largest, so that it takes any batch and knows no order.

    Args:
        quantiles: how many the attention reads; as many as the authors' batch has samples.
        factor: the attention compares vectors of `quantiles / factor` numbers.
        temperature: of the attention.
    """

    def __init__(self, *, quantiles: int = 64, factor: int = 4, temperature: float = 1.0) -> None:
        super().__init__()
        self.quantiles = quantiles
        self.factor = factor
        self.temperature = temperature
        self.queries: nn.ModuleList | None = None
        self.keys: nn.ModuleList | None = None
        self.projections: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make the attention's layers and a projection for each pair of layers.

        Args:
            student: example maps.
            teacher: example maps.
        """
        width = max(self.quantiles // self.factor, 1)
        students, teachers = several(student), several(teacher)
        for maps in (*students, *teachers):
            check_map(maps)
        self.queries = nn.ModuleList(_embedding(self.quantiles, width) for _ in students)
        self.keys = nn.ModuleList(_embedding(self.quantiles, width) for _ in teachers)
        self.projections = nn.ModuleList(
            nn.ModuleList(_projection(ours.shape[1], theirs.shape[1]) for theirs in teachers) for ours in students
        )
        self.to(students[0].device)

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps of one layer or of several.
            teacher: of as many layers as it likes, any channels and sizes; never a gradient.

        Returns:
            A scalar.
        """
        projections = prepared(self.projections)
        students, teachers = several(student), [each.detach() for each in several(teacher)]
        query = self._embedded(students, prepared(self.queries))
        key = self._embedded(teachers, prepared(self.keys))
        attention = F.softmax(query @ key.mT / self.temperature, dim=2)
        errors = [
            _errors(project, ours, theirs)
            for row, ours in zip(projections, students, strict=True)
            for project, theirs in zip(cast(nn.ModuleList, row), teachers, strict=True)
        ]
        return (attention.flatten(1) * torch.stack(errors, dim=1)).sum() / attention[:, :, 0].numel()

    def _embedded(self, layers: Sequence[Tensor], embeddings: nn.ModuleList) -> Tensor:
        """(N, L, width) each sample's similarities to the batch at each layer, embedded."""
        shares = torch.linspace(0, 1, self.quantiles, dtype=layers[0].dtype, device=layers[0].device)
        embedded = []
        for features, embed in zip(layers, embeddings, strict=True):
            similarities = torch.quantile(gram(features.flatten(1)), shares, dim=1).mT
            embedded.append(F.normalize(embed(similarities), dim=1))
        return torch.stack(embedded, dim=1)


def _errors(project: nn.Module, student: Tensor, teacher: Tensor) -> Tensor:
    """(N,) mean squared error of each sample, at the smaller one's size."""
    student, teacher = pool_to_smaller(student, teacher)
    return (project(student) - teacher).square().flatten(1).mean(dim=1)


def _embedding(width: int, wanted: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * wanted), nn.ReLU(), nn.Linear(2 * wanted, wanted))


def _projection(channels: int, wanted: int) -> nn.Sequential:
    middle = 2 * wanted
    return nn.Sequential(
        nn.Conv2d(channels, middle, 1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, middle, 3, padding=1, bias=False),
        nn.BatchNorm2d(middle),
        nn.ReLU(),
        nn.Conv2d(middle, wanted, 1, bias=False),
    )
