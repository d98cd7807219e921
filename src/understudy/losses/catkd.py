"""Class attention transfer: where each class is seen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import check_same_shape, in_float32


class CATKD(nn.Module):
    """The student's class activation maps, small and scaled to length 1, follow the teacher's.

    With A the maps averaged to R × R positions and each scaled to length 1: `mean (A_s - A_t)²`.

    Reference: Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023
    (https://arxiv.org/abs/2304.12777), equation 6; code https://github.com/GzyAftermath/CAT-KD (MIT).
    Class activation maps are what a 1×1 convolution in the place of the last linear layer gives before averaging.
    For `classes=k` the original's CAMs_Nums is k + 1: it counts one too many.

    Args:
        resolution: R.
        normalize: scale each map to length 1.
        binarize: of the teacher, only tell positions above the mean of the absolute values from the rest.
        classes: only compare this many, the teacher's most likely ones of each sample; 0 compares all.
    """

    def __init__(
        self, *, resolution: int = 2, normalize: bool = True, binarize: bool = False, classes: int = 0
    ) -> None:
        super().__init__()
        self.resolution = resolution
        self.normalize = normalize
        self.binarize = binarize
        self.classes = classes

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, K, H, W) class activation maps.
            teacher: (N, K, H, W), of another size where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        check_same_shape(student[:, :, 0, 0], teacher[:, :, 0, 0])
        likely = teacher.mean(dim=(2, 3))
        if self.binarize:
            teacher = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).to(teacher.dtype)
        if self.classes:
            chosen = likely.topk(self.classes, dim=1).indices
            rows = torch.arange(len(chosen), device=chosen.device)[:, None]
            student, teacher = student[rows, chosen], teacher[rows, chosen]
        return F.mse_loss(self._reduced(student), self._reduced(teacher))

    def _reduced(self, maps: Tensor) -> Tensor:
        maps = F.adaptive_avg_pool2d(maps, self.resolution)
        return F.normalize(maps, dim=(2, 3)) if self.normalize else maps  # pyright: ignore[reportArgumentType]
