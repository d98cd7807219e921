"""Relational distillation: distances and angles between samples, whatever the embedding's width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import in_float32


class RKD(nn.Module):
    """Distances between pairs and angles within triplets of samples follow the teacher's.

    With d the distances over their mean and h Huber's loss:
    `λ_d mean_ij h(d_s, d_t) + λ_a mean_ijk h(cos∠_s(ijk), cos∠_t(ijk))`.

    Reference: Park, Kim, Lu, Cho, "Relational Knowledge Distillation", CVPR 2019 (https://arxiv.org/abs/1904.05068),
    equations 4 to 9; code https://github.com/lenscloth/RKD. As there, the means run over all N² pairs and N³
    triplets, those of a sample with itself included as zeros. All inner products come from one Gram matrix: no
    N × N × D tensor is made.

    Args:
        distance: λ_d, the weight of the distances.
        angle: λ_a, the weight of the angles.
        normalize: scale each embedding to length 1 first, as mmrazor does by default.
    """

    def __init__(self, *, distance: float = 25.0, angle: float = 50.0, normalize: bool = False) -> None:
        super().__init__()
        self.distance = distance
        self.angle = angle
        self.normalize = normalize

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, D) embeddings, or maps that are flattened.
            teacher: (N, E), with another width where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        student, teacher = student.flatten(1), teacher.flatten(1)
        if self.normalize:
            student, teacher = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
        of_student, of_teacher = _gram(student), _gram(teacher)
        total = student.sum() * 0.0
        if self.distance:
            ours, theirs = (_distances(gram).to(student.dtype) for gram in (of_student, of_teacher))
            total = total + self.distance * F.smooth_l1_loss(ours, theirs)
        if self.angle:
            ours, theirs = (_cosines(gram, student.dtype) for gram in (of_student, of_teacher))
            total = total + self.angle * F.smooth_l1_loss(ours, theirs)
        return total


def _gram(rows: Tensor) -> Tensor:
    """(N, N) inner products around the mean, in float64 where there is one: differences of them cancel."""
    rows = rows - rows.mean(dim=0)
    rows = rows if rows.device.type == "mps" else rows.double()
    return rows @ rows.mT


def _squared_distances(gram: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) squared distances, and which pairs are no pair: a sample with itself."""
    lengths = gram.diagonal()
    itself = torch.eye(len(gram), dtype=torch.bool, device=gram.device)
    return lengths[:, None] + lengths[None, :] - 2 * gram, itself


def _distances(gram: Tensor) -> Tensor:
    """(N, N) distances over the mean of the N (N - 1) that are between two samples."""
    squares, itself = _squared_distances(gram)
    distances = squares.clamp(min=1e-12).sqrt().masked_fill(itself, 0.0)
    pairs = max(len(gram) * (len(gram) - 1), 1)
    return distances / (distances.sum() / pairs).clamp(min=1e-12)


def _cosines(gram: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, N, N) cosines of the angles at sample i between the directions to j and to k."""
    squares, itself = _squared_distances(gram)
    lengths = gram.diagonal()
    # Two samples in one place have no direction: what is left of their distance is rounding.
    rounding = 100 * torch.finfo(gram.dtype).eps * (lengths[:, None] + lengths[None, :])
    inverse = squares.masked_fill(itself | (squares <= rounding), torch.inf).rsqrt().to(dtype)
    products = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + lengths[:, None, None]
    return products.to(dtype) * inverse[:, :, None] * inverse[:, None, :]
