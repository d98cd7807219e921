"""Instance relationship graphs: samples, their distances, and how those change from map to map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import pool_to_smaller, without_autocast
from understudy.losses.functional import paired


class IRG(nn.Module):
    """Logits, distances between samples at every level, and each sample's way between two maps follow the teacher's.

    With squared distances d over their largest, for the maps and the embedding:
    `λ_v mean (z_t - z_s)² + λ_e mean_levels mean_ij (d_t - d_s)² + λ_t mean_i (w_t - w_s)²`, where w is the squared
    distance of a sample's two maps, over the largest of the batch.

    Reference: Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR 2019
    (https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html).
    The conventions are those of https://github.com/AberHu/Knowledge-Distillation-Zoo; where channels differ it
    averages groups of neighbouring channels, from one stage of a ResNet to the next pairs.

    Args:
        vertex: λ_v, the weight of the logits.
        edge: λ_e, the weight of the distances between samples.
        transformation: λ_t, the weight of the ways from the first map to the second.
    """

    with_logits = True

    def __init__(self, *, vertex: float = 0.1, edge: float = 5.0, transformation: float = 5.0) -> None:
        super().__init__()
        self.vertex = vertex
        self.edge = edge
        self.transformation = transformation

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> Tensor:
        """Compute the loss.

        Args:
            student: two maps (N, C, H, W), the second no larger and with as many channels or a multiple; an embedding
                (N, D); logits (N, K).
            teacher: the same of the teacher, with logits of the same shape; never a gradient.

        Returns:
            A scalar.

        Raises:
            ValueError: these are not four of each.
        """
        pairs = paired(student, teacher)
        if len(pairs) != 4:
            raise ValueError(f"IRG compares two maps, an embedding and logits, not {len(pairs)} tensors")
        levels = pairs[:3]
        edges = [F.mse_loss(_distances(ours), _distances(theirs)) for ours, theirs in levels]
        (student_1, teacher_1), (student_2, teacher_2), _ = levels
        ways = F.mse_loss(_way(student_1, student_2), _way(teacher_1, teacher_2))
        vertices = F.mse_loss(*pairs[3])
        return self.vertex * vertices + self.edge * torch.stack(edges).mean() + self.transformation * ways


def _distances(features: Tensor) -> Tensor:
    """(N, N) squared distances over their largest."""
    rows = features.flatten(1)
    rows = rows - rows.mean(dim=0)  # the same distances, with less cancellation
    gram = rows @ rows.mT
    lengths = gram.diagonal()
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    squares = (lengths[:, None] + lengths[None, :] - 2 * gram).clamp(min=1e-12).masked_fill(itself, 0.0)
    return squares / squares.max().clamp(min=1e-12)


def _way(first: Tensor, second: Tensor) -> Tensor:
    """(N,) squared distance of a sample's two maps over the largest of the batch."""
    first, second = pool_to_smaller(first, second)
    if first.shape[1] != second.shape[1]:
        second = second.unflatten(1, (first.shape[1], -1)).mean(dim=2)
    squares = (first - second).square().flatten(1).sum(dim=1)
    return squares / squares.max().clamp(min=1e-12)
