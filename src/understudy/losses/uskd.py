"""USKD: soft labels that the student makes for itself, from its own prediction and from a head in its middle."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import (
    class_numbers,
    in_float32,
    others_alone,
    pooled,
    prepared,
    split_target,
    weighted_sum,
)


class USKD(nn.Module):
    """Self-distillation without a teacher: a soft label for the target class, and a ranking for the others.

    With p the softmax, q the softmax over the classes but the label y, w that of a linear head on a feature from the
    middle of the student, and the labels' own targets without gradient:
    `α · -(p_s[y]² + 1 - mean_i p_s[y]²) log p_s[y] + β · -Σ_k r_k log q_s[k] + μ · H(smoothed labels, w)`, averaged
    over samples. r is Zipf's law, 1 / rank divided by its sum, over the other classes ranked by q_s + q_w. It is added
    to the cross entropy with the labels.

    Reference: Yang, Zeng, Li, Zhang, Yuan, Li, "From Knowledge Distillation to Self-Knowledge Distillation: A Unified
    Approach with Normalized Loss and Customized Soft Labels", ICCV 2023 (https://arxiv.org/abs/2303.13005); code:
    https://github.com/yzd-v/cls_KD (Apache-2.0). That code overwrites the student's probabilities by their logarithms
    before it ranks with them, and ranks the target class with the others, so that theirs start at 2; ours follows the
    paper.

    Args:
        alpha: weight of the target class.
        beta: weight of the other classes.
        mu: weight of the head's own cross entropy, with labels smoothed by 0.1.
    """

    # The student's logits come last, behind its features; of the teacher there are logits at most.
    with_logits = "student"

    def __init__(self, *, alpha: float = 1.0, beta: float = 0.1, mu: float = 0.005) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.mu = mu
        self.head: nn.Linear | None = None

    def prepare(self, student: tuple[Tensor, Tensor], teacher: Tensor | None = None) -> None:
        """Make the head.

        Args:
            student: example (feature, logits), as in `forward`.
            teacher: not used.
        """
        feature, logits = student
        self.head = nn.Linear(pooled(feature).shape[1], logits.shape[1])

    @without_autocast
    def forward(self, student: tuple[Tensor, Tensor], *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: a feature, (N, C), a map (N, C, H, W) or tokens (N, L, C), and the (N, K) logits.
            labels: (N,) class numbers, or (N, K) probabilities, of which the largest counts.

        Returns:
            A scalar.
        """
        head = prepared(self.head)
        feature, logits = in_float32(*student)
        classes = class_numbers(labels)
        own = classes.unsqueeze(1)
        log_target, _, log_others = split_target(logits, classes)
        weak = head(pooled(feature))

        squared = log_target.detach().exp().square()
        target = -((squared + 1 - squared.mean()) * log_target).sum()
        with torch.no_grad():
            ranked = (log_others.exp() + others_alone(weak, classes).exp()).scatter(1, own, -1.0)
            # The label itself comes last, and gets nothing.
            zipf = 1 / torch.arange(1, logits.shape[1] + 1, dtype=logits.dtype, device=logits.device)
            zipf[-1] = 0.0
            order = ranked.argsort(dim=1, descending=True, stable=True)
            zipf = torch.empty_like(ranked).scatter_(1, order, (zipf / zipf.sum()).expand_as(ranked))
        others = -weighted_sum(zipf, log_others)
        of_head = F.cross_entropy(weak, classes, label_smoothing=0.1)
        return (self.alpha * target + self.beta * others) / len(logits) + self.mu * of_head
