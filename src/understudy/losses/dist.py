"""DIST: the student's predictions correlate with the teacher's, instead of equalling them."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import above_zero, check_same_shape, in_float32, softened

# Added to the product of the norms, as the authors do: a column of nearly constant probabilities counts for little.
_EPSILON = 1e-8


class DIST(nn.Module):
    """Pearson's correlation ρ of the two models' probabilities, within each sample and within each class.

    With p the softmax at temperature T, i the samples and c the classes:
    `T² · [β · (1 - mean_i ρ(p_s[i, :], p_t[i, :])) + γ · (1 - mean_c ρ(p_s[:, c], p_t[:, c]))]`. It asks for the
    teacher's order and proportions, not for its values, which a student far below a strong teacher cannot reach.
    Of maps (N, K, H, W) each position is a sample, as in the authors' segmentation code.

    Reference: Huang, You, Wang, Qian, Xu, "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022
    (https://arxiv.org/abs/2205.10536); code: https://github.com/hunto/DIST_KD (Apache-2.0). T² is the code's, the
    paper does without; at T = 1 they agree.

    Args:
        beta: weight of the correlation between the classes of a sample (inter-class in the paper).
        gamma: weight of the correlation between the samples within a class (intra-class); a constant γT² for a single
            sample.
        temperature: T; the authors take 1 on ImageNet, 4 on CIFAR-100.
    """

    def __init__(self, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> None:
        super().__init__()
        self.beta = beta
        self.gamma = gamma
        self.temperature = above_zero("temperature", temperature)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) or (N, K, H, W) logits.
            teacher: logits of the same shape; never a gradient.

        Returns:
            A scalar.
        """
        check_same_shape(student, teacher)
        student, teacher = (
            F.softmax(softened(logits, self.temperature), dim=1).movedim(1, -1).reshape(-1, logits.shape[1])
            for logits in in_float32(student, teacher.detach())
        )
        # The mean over the classes is known: the probabilities add up to 1.
        student, teacher = student - 1 / student.shape[1], teacher - 1 / teacher.shape[1]
        within_samples = 1 - _cosine(student, teacher, dim=1).mean()
        student, teacher = student - student.mean(dim=0), teacher - teacher.mean(dim=0)
        within_classes = 1 - _cosine(student, teacher, dim=0).mean()
        return self.temperature**2 * (self.beta * within_samples + self.gamma * within_classes)


def _cosine(student: Tensor, teacher: Tensor, *, dim: int) -> Tensor:
    return (student * teacher).sum(dim=dim) / (student.norm(dim=dim) * teacher.norm(dim=dim) + _EPSILON)
