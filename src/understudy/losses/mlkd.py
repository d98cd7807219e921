"""Multi-level logit distillation: each sample, how samples resemble each other, how classes do."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import check_same_shape, in_float32, standardized

Views = Tensor | tuple[Tensor, ...]


class MLKD(nn.Module):
    """The student's predictions follow the teacher's on three levels, at several temperatures and in every view.

    With P (N, K) the softmax at temperature T: `Σ_T [T² · KL(P_t ‖ P_s) / N + ‖P_tᵀP_t - P_sᵀP_s‖² / K +
    ‖P_tP_tᵀ - P_sP_sᵀ‖² / N]`, summed over the views: samples, classes, batch.

    The authors train on two views of each image, one weakly and one strongly augmented; the labels are theirs for
    both. Then `student` and `teacher` are tuples (weak, strong). One view alone is a tensor.

    Reference: Jin, Wang, Lin, "Multi-Level Logit Distillation", CVPR 2023
    (https://openaccess.thecvf.com/content/CVPR2023/html/Jin_Multi-Level_Logit_Distillation_CVPR_2023_paper.html);
    code: https://github.com/Jin-Ying/Multi-Level-Logit-Distillation, of which `variant="release"` has the
    differences: masks of the samples and classes that the teacher is less sure of than the median one, meant to
    choose among them but applied to what is already a mean, so that they scale it by their share (about a half); for
    the strong view only the samples' level, and there only the first three temperatures, the others once more in the
    weak view. The published numbers, and those with logit standardisation (https://arxiv.org/abs/2403.01427), were
    made with it.

    Args:
        temperatures: each T.
        variant: `paper`, or `release` for what the authors' code computes.
        standardize: standardise both models' logits first (LSKD, see `KD`), on the level of samples only, as its
            authors do.
    """

    takes_views = True

    def __init__(
        self,
        *,
        temperatures: tuple[float, ...] = (4.0, 3.0, 5.0, 2.0, 6.0),
        variant: Literal["paper", "release"] = "paper",
        standardize: bool = False,
    ) -> None:
        super().__init__()
        if not temperatures or min(temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, not {temperatures}")
        self.temperatures = tuple(temperatures)
        self.variant = variant
        self.needs_views = variant == "release"
        self.standardize = standardize

    def forward(self, student: Views, teacher: Views) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K) logits, or a tuple of them, one a view: for `release` weak and strong.
            teacher: likewise, of the same shapes; never a gradient.

        Returns:
            A scalar.
        """
        samples, classes, batch = self.levels(student, teacher)
        return samples + classes + batch

    @without_autocast
    def levels(self, student: Views, teacher: Views) -> tuple[Tensor, Tensor, Tensor]:
        """The three levels' terms, whose sum is the loss: samples, classes, batch."""
        students, teachers = _stacked(student), _stacked(teacher).detach()
        check_same_shape(students, teachers)
        students, teachers = in_float32(students, teachers)
        # (V, 1, N, K) by (T, 1, 1): every view at every temperature at once.
        temperatures = students.new_tensor(self.temperatures)[:, None, None]
        students, teachers = students.unsqueeze(1), teachers.unsqueeze(1)
        classes, batch = _correlations((students / temperatures).softmax(-1), (teachers / temperatures).softmax(-1))
        if self.standardize:
            students, teachers = (standardized(logits.movedim(-1, 1)).movedim(1, -1) for logits in (students, teachers))
        log_student, log_teacher = (F.log_softmax(logits / temperatures, dim=-1) for logits in (students, teachers))
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim=(-2, -1))
        samples = divergence * temperatures.flatten() ** 2 / students.shape[-2]
        if self.variant == "release":
            return self._released(samples, classes, batch, teachers_weak=_stacked(teacher)[0])
        return samples.sum(), classes.sum(), batch.sum()

    def _released(
        self, samples: Tensor, classes: Tensor, batch: Tensor, *, teachers_weak: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Put the levels' terms (V, T) together as the authors' code does."""
        if len(samples) != 2:
            raise ValueError('MLKD as released takes two views, (weak, strong): use variant="paper" for one')
        probabilities = in_float32(teachers_weak.detach())[0].softmax(dim=1)
        of_samples = _share_below_median(probabilities.amax(dim=1))
        of_classes = _share_below_median(probabilities.sum(dim=0))
        weak, strong = samples
        both = of_samples * weak.sum() + strong[:3].sum() + weak[3:].sum()
        return both, of_classes * classes[0].sum(), of_samples * batch[0].sum()


def _stacked(views: Views) -> Tensor:
    return torch.stack(views) if isinstance(views, tuple) else views.unsqueeze(0)


def _share_below_median(confidence: Tensor) -> Tensor:
    return (confidence <= confidence.quantile(0.5)).to(confidence.dtype).mean()


def _correlations(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """`‖P_tᵀP_t - P_sᵀP_s‖² / K` and `‖P_tP_tᵀ - P_sP_sᵀ‖² / N` of (..., N, K) probabilities.

    With D = P_t - P_s and S = P_t + P_s both are sums over products of DSᵀ, DDᵀ and SSᵀ, all N by N, or all K by K
    when the factors are transposed: the larger Gram matrix is never made.
    """
    samples, classes = student.shape[-2:]
    difference, total = teacher - student, teacher + student
    wide = samples <= classes
    if not wide:
        difference, total = difference.mT, total.mT
    mixed = difference @ total.mT
    crossed = (mixed * mixed.mT).sum(dim=(-2, -1))
    inner = (mixed.square().sum(dim=(-2, -1)) + crossed) / 2
    outer = ((difference @ difference.mT * (total @ total.mT)).sum(dim=(-2, -1)) + crossed) / 2
    return (outer / classes, inner / samples) if wide else (inner / classes, outer / samples)
