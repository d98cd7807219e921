"""Hard-label distillation: the teacher's decision as a second label."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import check_same_shape, in_float32


class HardLabel(nn.Module):
    """Cross entropy against the class the teacher decides for: `CE(z_s, argmax z_t)`.

    Reference: Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML
    2021 (https://arxiv.org/abs/2012.12877), equation 3 (its halves are the weights of objective and labels).

    Args:
        label_smoothing: share of the probability spread evenly over all classes.
    """

    def __init__(self, *, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: (N, K) logits; of equal largest ones the first decides.

        Returns:
            A scalar.
        """
        check_same_shape(student, teacher)
        (student,) = in_float32(student)
        return F.cross_entropy(student, teacher.argmax(dim=1), label_smoothing=self.label_smoothing)
