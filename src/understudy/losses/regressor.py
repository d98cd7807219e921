"""Layers that bring a student's features to the shape of the teacher's; trained with the loss, dropped after."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.functional import NoMap

# Beyond it, a kernel that spans the difference of two sizes would hold more weights than the student.
_LARGEST_KERNEL = 16


class Regressor(nn.Module):
    """A convolution to the teacher's channels and size, batch norm, ReLU; for vectors a linear layer first.

    Half the size is reached by a 3×3 convolution of stride 2, twice the size by a transposed 4×4 one, any smaller
    size by a convolution as large as the difference (the choices of RepDistiller,
    https://github.com/HobbitLong/RepDistiller, BSD-2), anything else by a 1×1 convolution and interpolation.

    Args:
        student: features of the student, for their shape: (N, C, H, W) or (N, D).
        teacher: likewise of the teacher.
        relu: end with a ReLU, for features taken after one.
    """

    def __init__(self, student: Tensor, teacher: Tensor, *, relu: bool = True) -> None:
        super().__init__()
        if student.ndim != teacher.ndim or student.ndim not in (2, 4):
            raise NoMap(
                f"no regressor leads from {tuple(student.shape)} to {tuple(teacher.shape)}: "
                "tap maps (N, C, H, W) or vectors (N, D) in both models"
            )
        self.size = tuple(teacher.shape[2:])
        self.conv: nn.Module = _layer(student, teacher)
        channels = teacher.shape[1]
        self.norm = nn.BatchNorm2d(channels) if self.size else nn.BatchNorm1d(channels)
        self.relu = relu

    def forward(self, features: Tensor) -> Tensor:
        """Regress the student's features on the teacher's.

        Args:
            features: (N, C, H, W) or (N, D) of the student.

        Returns:
            Features of the teacher's shape.
        """
        features = self.conv(features)
        if self.size and features.shape[2:] != self.size:
            features = F.interpolate(features, self.size, mode="bilinear", antialias=True)
        features = self.norm(features)
        return features.relu() if self.relu else features


def channel_regressor(student: int, teacher: int, *, kernel_size: int = 1) -> nn.Sequential:
    """A convolution without bias to the teacher's channels, and batch norm.

    Args:
        student: channels of the student.
        teacher: channels of the teacher.
        kernel_size: odd; the size of the maps is kept.

    Returns:
        The two layers.
    """
    conv = nn.Conv2d(student, teacher, kernel_size, padding=(kernel_size - 1) // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, nn.BatchNorm2d(teacher))


def _layer(student: Tensor, teacher: Tensor) -> nn.Module:
    inward, outward = student.shape[1], teacher.shape[1]
    if student.ndim == 2:
        return nn.Linear(inward, outward)
    of_student, of_teacher = torch.tensor(student.shape[2:]), torch.tensor(teacher.shape[2:])
    if (of_student == 2 * of_teacher).all():
        return nn.Conv2d(inward, outward, 3, stride=2, padding=1)
    if (2 * of_student == of_teacher).all():
        return nn.ConvTranspose2d(inward, outward, 4, stride=2, padding=1)
    kernel = (1 + of_student - of_teacher).tolist()
    if min(kernel) < 1 or max(kernel) > _LARGEST_KERNEL:
        kernel = [1, 1]
    return nn.Conv2d(inward, outward, (kernel[0], kernel[1]))
