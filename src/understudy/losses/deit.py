"""DeiT-III's losses: labels as so many yes-or-no questions, and a student that learns from itself."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import check_same_shape, in_float32


class BinaryCrossEntropy(nn.Module):
    """Each class is asked about by itself: `-mean_k [y_k log σ(z_k) + (1 - y_k) log(1 - σ(z_k))]`.

    Labels mixed by mixup or cutmix count as several: y_k is 1 for every class of which there is some.

    Smoothed labels have some of every class: it takes none.

    Reference: Wightman, Touvron, Jégou, "ResNet strikes back", 2021 (https://arxiv.org/abs/2110.00476), section 2.2;
    for transformers Touvron, Cord, Jégou, "DeiT III: Revenge of the ViT", ECCV 2022
    (https://arxiv.org/abs/2204.07118), with the code of https://github.com/facebookresearch/deit.

    Example:
        >>> import torch
        >>> round(BinaryCrossEntropy()(torch.zeros(1, 4), labels=torch.tensor([2])).item(), 4)
        0.6931
    """

    def forward(self, student: Tensor, *, labels: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits.
            labels: (N,) class numbers, or (N, K) shares.

        Returns:
            A scalar, the mean over samples and classes.
        """
        (student,) = in_float32(student)
        return F.binary_cross_entropy_with_logits(student, _questions(labels, student))


class Cosub(nn.Module):
    """Two random subnetworks of the student teach each other: the mean of four binary cross entropies.

    With logits a and b of two forwards that skip other blocks (stochastic depth):
    `¼ · [BCE(a, y) + BCE(b, y) + BCE(a, σ(b)) + BCE(b, σ(a))]`, σ of the other one without gradient. There is no
    teacher; a student without drop path or dropout gives b = a, and learns from the labels alone.

    Reference: Touvron, Cord, Oquab, Bojanowski, Verbeek, Jégou, "Co-training 2^L Submodels for Visual Recognition",
    CVPR 2023 (https://arxiv.org/abs/2212.04884), with the code of https://github.com/facebookresearch/deit, which
    doubles the batch where we run the student a second time.
    """

    def forward(self, student: Tensor, *, inputs: Tensor, labels: Tensor, student_model: nn.Module) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits of the first forward.
            inputs: (N, ...) what the student saw, for the second.
            labels: (N,) class numbers, or (N, K) shares; as for `BinaryCrossEntropy`.
            student_model: from images to logits, or to several of which the first are meant.

        Returns:
            A scalar.
        """
        second = student_model(inputs)
        return submodels_agree(student, second[0] if isinstance(second, tuple) else second, labels=labels)


def submodels_agree(first: Tensor, second: Tensor, *, labels: Tensor) -> Tensor:
    """The loss of `Cosub` from the logits of both forwards.

    Args:
        first: (N, K) logits.
        second: likewise.
        labels: (N,) class numbers, or (N, K) shares.
    """
    check_same_shape(first, second)
    first, second = in_float32(first, second)
    questions = _questions(labels, first)
    targets = ((first, questions), (second, questions), (first, second.detach().sigmoid()))
    targets = (*targets, (second, first.detach().sigmoid()))
    return 0.25 * sum((F.binary_cross_entropy_with_logits(*pair) for pair in targets), first.new_zeros(()))


def _questions(labels: Tensor, logits: Tensor) -> Tensor:
    """(N, K) ones for the classes that a sample has some of."""
    if labels.is_floating_point():
        return (labels > 0).to(logits.dtype)
    return F.one_hot(labels, logits.shape[1]).to(logits.dtype)
