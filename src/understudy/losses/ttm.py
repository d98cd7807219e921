"""Transformed teacher matching: only the teacher is softened."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, comparable, weighted_sum


class TTM(nn.Module):
    """The student at temperature 1 follows the teacher's probabilities raised to a power.

    With `q_k = p_t[k]^γ / U` and `U = Σ_k p_t[k]^γ`, the teacher at temperature 1/γ:
    `mean_i KL(q_i ‖ softmax(z_s)_i)`; weighted (WTTM), `mean_i U_i · KL(q_i ‖ softmax(z_s)_i)`, where U is the larger
    the less sure the teacher is. Against Hinton's loss, the student has a Rényi entropy as regulariser.

    Reference: Zheng, Yang, "Knowledge Distillation Based on Transformed Teacher Matching", ICLR 2024
    (https://arxiv.org/abs/2402.11148); code: https://github.com/zkxufo/TTM (from its formula; ours in logarithms).

    Args:
        exponent: γ, the inverse of the teacher's temperature.
        weighted: WTTM.
    """

    def __init__(self, *, exponent: float = 0.1, weighted: bool = False) -> None:
        super().__init__()
        self.exponent = above_zero("exponent", exponent)
        self.weighted = weighted

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher)
        log_student = F.log_softmax(student, dim=1)
        log_powers = F.log_softmax(self.exponent * teacher, dim=1)
        if not self.weighted:
            return F.kl_div(log_student, log_powers, reduction="batchmean", log_target=True)
        # From log p_t γ = log q + log U, which is the same for every class.
        sums = (self.exponent * F.log_softmax(teacher, dim=1) - log_powers)[:, :1].exp()
        return weighted_sum(sums * log_powers.exp(), log_powers - log_student) / len(student)
