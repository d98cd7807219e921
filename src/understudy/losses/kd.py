"""Hinton's distillation, with each convention that people mean by it as an argument of its own."""

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, comparable, softened, weighted_sum


class KD(nn.Module):
    """The student's softened class probabilities follow the teacher's.

    With temperature T: `T² · KL(softmax(z_t / T) ‖ softmax(z_s / T))`, summed over classes, averaged over samples.
    T² keeps the gradient's size when T changes: without it, it falls as 1/T² against the hard loss.

    Reference: Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015
    (https://arxiv.org/abs/1503.02531), section 2. The paper writes the cross entropy; we take the KL divergence,
    which has the same gradient and is zero when the student has learnt everything (`cross_entropy=True` gives the
    paper's value).

    Args:
        temperature: T; 1 leaves the probabilities as they are.
        t_squared: multiply by T².
        reduction: `batchmean` divides the sum by the number of samples N, `mean` by all N·K elements (what
            `torch.nn.KLDivLoss()` does by default, K times smaller), `sum` by nothing.
        cross_entropy: leave out the teacher's entropy, which has no gradient.
        standardize: give both models' logits mean 0 and standard deviation 1 over the classes first, so that the
            student follows the teacher's order and proportions but not its scale: logit standardisation (LSKD), Sun,
            Ren, Li, Wang, Cao, "Logit Standardization in Knowledge Distillation", CVPR 2024
            (https://arxiv.org/abs/2403.01427; code: https://github.com/sunshangquan/logit-standardization-KD), with
            temperature 2 and weight 9 there. As their code, we divide by K - 1 in the deviation; the paper by K.

    Example:
        >>> import torch
        >>> loss = KD(temperature=2.0)
        >>> round(loss(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])).item(), 4)
        0.4898
    """

    def __init__(
        self,
        *,
        temperature: float = 4.0,
        t_squared: bool = True,
        reduction: Literal["batchmean", "mean", "sum"] = "batchmean",
        cross_entropy: bool = False,
        standardize: bool = False,
    ) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)
        self.t_squared = t_squared
        self.reduction = reduction
        self.cross_entropy = cross_entropy
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K, ...) logits; gradients flow here.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher, standardize=self.standardize)
        log_student = F.log_softmax(softened(student, self.temperature), dim=1)
        log_teacher = F.log_softmax(softened(teacher, self.temperature), dim=1)
        # From the logarithms on both sides: probabilities that underflow to 0 then cost 0, not 0 · log 0.
        # The teacher's entropy is left out by subtracting the student's term alone.
        total = weighted_sum(log_teacher.exp(), -log_student if self.cross_entropy else log_teacher - log_student)
        count = {"batchmean": len(student), "mean": student.numel(), "sum": 1}[self.reduction]
        return total * ((self.temperature**2 if self.t_squared else 1.0) / count)
