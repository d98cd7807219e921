"""Instance relationship graphs: samples, their distances, and how those change from map to map."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import pool_to_smaller, without_autocast
from understudy.losses.functional import gram, paired, pooled


class IRG(nn.Module):
    """Logits, distances between samples at every level, and each sample's way between two maps follow the teacher's.

    With squared distances d over their largest, for the maps and the embedding:
    `λ_v mean (z_t - z_s)² + λ_e mean_levels mean_ij (d_t - d_s)² + λ_t mean_i (w_t - w_s)²`, where w is the squared
    distance of a sample's two maps, over the largest of the batch.

    Reference: Liu et al., "Knowledge Distillation via Instance Relationship Graph", CVPR 2019
    (https://openaccess.thecvf.com/content_CVPR_2019/html/Liu_Knowledge_Distillation_via_Instance_Relationship_Graph_CVPR_2019_paper.html).
    The conventions are those of https://github.com/AberHu/Knowledge-Distillation-Zoo, which takes the last two stages;
    where channels differ neighbouring ones are averaged, from one stage of a ResNet to the next pairs.

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
            student: maps (N, C, H, W) or tokens (N, L, C) of two stages or more, of which the last two count; the
                embedding (N, D), by default the last stage's mean over its places; logits (N, K).
            teacher: as many of the teacher, with logits of the same shape; never a gradient.

        Returns:
            A scalar.

        Raises:
            ValueError: fewer than two stages.
        """
        *features, logits = paired(student, teacher)
        stages = [pair for pair in features if pair[0].ndim > 2][-2:]
        if len(stages) < 2:
            raise ValueError("IRG follows the samples from one stage to the next: tap two of each model or more")
        embedding = features[-1] if features[-1][0].ndim == 2 else [pooled(side) for side in stages[-1]]
        edges = [F.mse_loss(_distances(ours), _distances(theirs)) for ours, theirs in (*stages, embedding)]
        of_student, of_teacher = zip(*stages, strict=True)
        ways = F.mse_loss(_way(*of_student), _way(*of_teacher))
        vertices = F.mse_loss(*logits)
        return self.vertex * vertices + self.edge * torch.stack(edges).mean() + self.transformation * ways


def _distances(features: Tensor) -> Tensor:
    """(N, N) squared distances over their largest."""
    rows = features.flatten(1)
    rows = rows - rows.mean(dim=0)  # the same distances, with less cancellation
    products = gram(rows)
    lengths = products.diagonal()
    itself = torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    squares = (lengths[:, None] + lengths[None, :] - 2 * products).clamp(min=1e-12).masked_fill(itself, 0.0)
    return squares / squares.max().clamp(min=1e-12)


def _way(first: Tensor, second: Tensor) -> Tensor:
    """(N,) squared distance of a sample's features at two stages over the largest of the batch."""
    if first.ndim == 4:
        first, second = (maps.flatten(2).mT for maps in pool_to_smaller(first, second))
    width = min(first.shape[2], second.shape[2])
    first, second = (each if each.shape[2] == width else F.adaptive_avg_pool1d(each, width) for each in (first, second))
    squares = (first - second).square().sum(dim=(1, 2))
    return squares / squares.max().clamp(min=1e-12)
