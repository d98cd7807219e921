"""Decoupled distillation: the target class and the others, each with a weight of its own."""

from torch import Tensor, nn

from understudy.losses.functional import (
    above_zero,
    binary_divergence,
    class_numbers,
    comparable,
    softened,
    split_target,
    weighted_sum,
)


class DKD(nn.Module):
    """Hinton's divergence taken apart: how sure of the target class, and how the other classes share the rest.

    With p the probability of the labelled class at temperature T and q the distribution over the other classes among
    themselves: `T² · [α · KL([p_t, 1 - p_t] ‖ [p_s, 1 - p_s]) + β · KL(q_t ‖ q_s)]`, averaged over samples. Plain
    distillation has α = 1 and β = 1 - p_t, which is small just where the teacher is right.

    Reference: Zhao, Cui, Song, Qiu, Liang, "Decoupled Knowledge Distillation", CVPR 2022
    (https://arxiv.org/abs/2203.08679), equation 7; code: https://github.com/megvii-research/mdistiller (MIT), which
    hides the target by subtracting 1000 from its logit and takes logarithms of sums of probabilities. Ours has the
    same value in closed form from log-softmaxes, finite where those underflow. The paper's warm-up over 20 epochs is a
    schedule of the objective's weight (preset `warm-up`).

    Args:
        temperature: T.
        alpha: weight of the target class against the rest.
        beta: weight of the other classes among themselves; 8 on CIFAR-100 (2 or 6 for some pairs), 0.5 to 2 on
            ImageNet.
        standardize: standardise both models' logits first (LSKD, see `KD`).
    """

    def __init__(
        self, *, temperature: float = 4.0, alpha: float = 1.0, beta: float = 8.0, standardize: bool = False
    ) -> None:
        super().__init__()
        self.temperature = above_zero("temperature", temperature)
        self.alpha = alpha
        self.beta = beta
        self.standardize = standardize

    def forward(self, student: Tensor, teacher: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            teacher: logits of the same shape; never a gradient.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        student, teacher = comparable(student, teacher, standardize=self.standardize)
        classes = class_numbers(labels)
        *of_student, log_student = split_target(softened(student, self.temperature), classes)
        *of_teacher, log_teacher = split_target(softened(teacher, self.temperature), classes)
        target = binary_divergence(of_student, [part.exp() for part in of_teacher])
        others = weighted_sum(log_teacher.exp(), log_teacher - log_student)
        return (self.alpha * target + self.beta * others) * (self.temperature**2 / len(student))
