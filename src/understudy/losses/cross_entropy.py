"""Cross entropy with the labels: what a student learns without a teacher."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import in_float32


class CrossEntropy(nn.Module):
    """Cross entropy with class labels or with soft ones (mixup, cutmix): `-Σ_k y_k log softmax(z_s)_k`.

    Label smoothing ε replaces y by `(1 - ε) y + ε / K`.

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", CVPR 2016
    (https://arxiv.org/abs/1512.00567), section 7.

    A class number of -1 is no label: the mean is over the others, and zero where there is none.

    Args:
        label_smoothing: ε, the share of the probability spread evenly over all classes.
    """

    skips_unlabelled = True

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must lie in [0, 1), not {label_smoothing}")
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            labels: (N,) class numbers, or (N, K) probabilities.

        Returns:
            A scalar, the mean over the samples with a label.
        """
        (student,) = in_float32(student)
        if labels.is_floating_point():
            return F.cross_entropy(student, labels.to(student.dtype), label_smoothing=self.label_smoothing)
        smoothing = self.label_smoothing
        summed = F.cross_entropy(student, labels, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        return summed / (labels >= 0).sum().clamp(min=1)
