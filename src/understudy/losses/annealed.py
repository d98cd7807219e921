"""Annealed distillation: the teacher's logits grow to their full size while the student follows."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, check_same_shape, in_float32


class Annealed(nn.Module):
    """The student's logits follow the teacher's, which are shrunk at first and grow with the epochs.

    `mean (z_s - Φ(T) z_t)²` with `Φ(T) = 1 - (T - 1) / T_max`; T falls from T_max to 1 by one every `epochs_each`
    epochs. When it is reached, the labels take over: weights of a method change by epoch.

    Reference: Jafari, Rezagholizadeh, Sharma, Ghodsi, "Annealing Knowledge Distillation", EACL 2021
    (https://arxiv.org/abs/2104.07163), equations 5 and 6.

    Args:
        temperature: T_max, a whole number in the paper.
        epochs_each: how long each temperature is held.
    """

    def __init__(self, *, temperature: float = 10.0, epochs_each: int = 1) -> None:
        super().__init__()
        if epochs_each < 1:
            raise ValueError(f"epochs_each must be 1 or more, not {epochs_each}")
        self.highest = above_zero("temperature", temperature)
        self.epochs_each = epochs_each

    def forward(self, student: Tensor, teacher: Tensor, *, epoch: int) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits; gradients flow here.
            teacher: logits of the same shape; never a gradient.
            epoch: counted from 0.

        Returns:
            A scalar.
        """
        check_same_shape(student, teacher)
        student, teacher = in_float32(student, teacher.detach())
        temperature = max(1.0, self.highest - epoch // self.epochs_each)
        return F.mse_loss(student, (1 - (temperature - 1) / self.highest) * teacher)
