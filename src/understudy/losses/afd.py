"""Attention-based feature distillation: which of the student's taps learns from which of the teacher's is learned."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, check_map, several, without_autocast
from understudy.losses.functional import prepared


class AFD(nn.Module):
    """Every tap of the student follows every tap of the teacher, weighted by a learned attention.

    `mean_n Σ_t Σ_s a_ts · mean_hw (φ(F_s) - φ(F_t))²` with φ the channels' mean square at each place, pooled to the
    teacher's size and scaled to length 1, and attention `a_t = softmax_s((k_s W_t q_t + p_t·p_s) / √d)` of queries
    and keys from the channels' means.

    Reference: Ji, Heo, Park, "Show, Attend and Distill: Knowledge Distillation via Attention-based Feature
    Matching", AAAI 2021 (https://arxiv.org/abs/2102.02973), and
    https://github.com/clovaai/attention-feature-distillation (Apache-2.0). Not the method of the same name that is
    `AFDS` here.

    Args:
        dimension: d, of queries and keys.
    """

    def __init__(self, *, dimension: int = 128) -> None:
        super().__init__()
        self.dimension = dimension
        self.attention: _Attention | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make the attention for the taps' channels.

        Args:
            student: example features, as for `forward`.
            teacher: likewise.
        """
        of_student, of_teacher = _checked(student), _checked(teacher)
        self.attention = _Attention(
            [maps.shape[1] for maps in of_student], [maps.shape[1] for maps in of_teacher], dimension=self.dimension
        ).to(of_student[0])

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps, one or several; N above 1, which the batch norms need.
            teacher: any number of maps of any size; never a gradient.

        Returns:
            A scalar.

        Raises:
            RuntimeError: `prepare` was not called.
        """
        of_student, of_teacher = _checked(student), tuple(maps.detach() for maps in _checked(teacher))
        attention = prepared(self.attention)(of_student, of_teacher)
        energies = [maps.square().mean(dim=1, keepdim=True) for maps in of_student]
        by_size: dict[tuple[int, int], Tensor] = {}
        losses = []
        for index, maps in enumerate(of_teacher):
            size = (maps.shape[2], maps.shape[3])
            if size not in by_size:
                pooled = [F.adaptive_avg_pool2d(energy, size).flatten(1) for energy in energies]
                by_size[size] = F.normalize(torch.stack(pooled, dim=1), dim=2)
            target = F.normalize(maps.square().mean(dim=1).flatten(1), dim=1)
            distances = (by_size[size] - target[:, None]).square().mean(dim=2)
            losses.append((distances * attention[:, index]).sum(dim=1).mean())
        return torch.stack(losses).sum()


class _Attention(nn.Module):
    """From the taps of both to (N, T, S), the weight of each of the student's for each of the teacher's."""

    def __init__(self, student: list[int], teacher: list[int], *, dimension: int) -> None:
        super().__init__()
        self.queries = nn.ModuleList(_Projection(channels, dimension) for channels in teacher)
        self.keys = nn.ModuleList(_Projection(channels, dimension) for channels in student)
        self.bilinear = _Projection(dimension, dimension * len(teacher))
        self.teacher_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(teacher), dimension)))
        self.student_positions = nn.Parameter(nn.init.xavier_normal_(torch.empty(len(student), dimension)))

    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        queries = torch.stack(_projected(self.queries, teacher), dim=1)
        keys = torch.stack(_projected(self.keys, student), dim=1).relu()
        # One query of its own space for each pair: (N·S, d) to (N, S, T, d).
        keys = self.bilinear(keys.flatten(0, 1)).view(*keys.shape[:2], len(teacher), -1)
        logits = torch.einsum("nstd,ntd->nts", keys, queries) + self.teacher_positions @ self.student_positions.mT
        return (logits / keys.shape[-1] ** 0.5).softmax(dim=2)


class _Projection(nn.Module):
    def __init__(self, inward: int, outward: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inward, outward)
        self.norm = nn.BatchNorm1d(outward)

    def forward(self, vectors: Tensor) -> Tensor:
        return self.norm(self.linear(vectors))


def _projected(projections: nn.ModuleList, features: tuple[Tensor, ...]) -> list[Tensor]:
    return [projection(maps.mean(dim=(2, 3))) for projection, maps in zip(projections, features, strict=True)]


def _checked(features: Features) -> tuple[Tensor, ...]:
    maps = several(features)
    for each in maps:
        check_map(each)
    return maps
