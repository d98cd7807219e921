"""Relational distillation: distances and angles between samples, whatever the embedding's width."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import gram, in_float32


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
        of_student, of_teacher = _products(student), _products(teacher)
        total = student.sum() * 0.0
        if self.distance:
            ours, theirs = (_distances(products).to(student.dtype) for products in (of_student, of_teacher))
            total = total + self.distance * F.smooth_l1_loss(ours, theirs)
        if self.angle:
            ours, theirs = (_cosines(products, student.dtype) for products in (of_student, of_teacher))
            total = total + self.angle * F.smooth_l1_loss(ours, theirs)
        return total


def _products(rows: Tensor) -> Tensor:
    """(N, N) inner products around the mean, in float64 where there is one: differences of them cancel."""
    rows = rows - rows.mean(dim=0)
    rows = rows if rows.device.type == "mps" else rows.double()
    return gram(rows)


def _squared_distances(products: Tensor) -> tuple[Tensor, Tensor]:
    """(N, N) squared distances, and which pairs are no pair: a sample with itself."""
    lengths = products.diagonal()
    itself = torch.eye(len(products), dtype=torch.bool, device=products.device)
    return lengths[:, None] + lengths[None, :] - 2 * products, itself


def _distances(products: Tensor) -> Tensor:
    """(N, N) distances over the mean of the N (N - 1) that are between two samples."""
    squares, itself = _squared_distances(products)
    distances = squares.clamp(min=1e-12).sqrt().masked_fill(itself, 0.0)
    pairs = max(len(products) * (len(products) - 1), 1)
    return distances / (distances.sum() / pairs).clamp(min=1e-12)


def _cosines(products: Tensor, dtype: torch.dtype) -> Tensor:
    """(N, N, N) cosines of the angles at sample i between the directions to j and to k."""
    squares, itself = _squared_distances(products)
    lengths = products.diagonal()
    # Two samples in one place have no direction: what is left of their distance is rounding.
    rounding = 100 * torch.finfo(products.dtype).eps * (lengths[:, None] + lengths[None, :])
    inverse = squares.masked_fill(itself | (squares <= rounding), torch.inf).rsqrt().to(dtype)
    between = products[None, :, :] - products[:, :, None] - products[:, None, :] + lengths[:, None, None]
    return between.to(dtype) * inverse[:, :, None] * inverse[:, None, :]
