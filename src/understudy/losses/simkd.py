"""Distillation with the reused teacher classifier: the student learns features, and takes the teacher's head."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import check_map, pool_to_smaller, without_autocast
from understudy.losses.functional import in_float32, prepared


class SimKD(nn.Module):
    """The student's last map, through a projector, becomes the teacher's; the teacher's last layer then classifies.

    With r the projector (1×1, 3×3 and 1×1 convolutions, each with batch norm and ReLU) and the larger map averaged
    to the smaller one's size: `mean (r(F_s) - F_t)²`. The student's own last layer learns nothing: what answers for
    the student, in validation and when exported, is `predictor(teacher_head)` on the tapped map, projector and
    teacher's layer included; its parameters count.

    Reference: Chen, Mei, Zhang, Wang, Feng, Chen, "Knowledge Distillation with the Reused Teacher Classifier",
    CVPR 2022 (https://arxiv.org/abs/2203.14001), equation 3; code https://github.com/DefangChen/SimKD. The teacher's
    map is the one after its last ReLU, before averaging; a teacher whose last layer does not take that average (a
    transformer's does not) is refused.

    Args:
        factor: how many times narrower than the teacher's map the projector is inside.
    """

    def __init__(self, *, factor: int = 2) -> None:
        super().__init__()
        self.factor = factor
        self.map_shape: tuple[int, ...] = ()  # of the teacher
        self.projector: nn.Sequential | None = None

    def prepare(self, student: Tensor, teacher: Tensor) -> None:
        """Make the projector.

        Args:
            student: an example map.
            teacher: an example map.
        """
        check_map(student)
        check_map(teacher)
        channels, wanted = student.shape[1], teacher.shape[1]
        narrow = wanted // self.factor
        self.map_shape = tuple(teacher.shape[1:])
        height, width = teacher.shape[2:]
        larger = student.shape[2] > height
        self.projector = nn.Sequential(
            nn.AdaptiveAvgPool2d((height, width)) if larger else nn.Identity(),
            nn.Sequential(
                *_convolution(channels, narrow, 1), *_convolution(narrow, narrow, 3), *_convolution(narrow, wanted, 1)
            ),
        ).to(student.device)

    @without_autocast
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) the student's last map.
            teacher: (N, D, H, W) the teacher's, of another size where it likes; never a gradient.

        Returns:
            A scalar.
        """
        student, teacher = in_float32(student, teacher.detach())
        projected = prepared(self.projector)(student)
        return F.mse_loss(*pool_to_smaller(projected, teacher))

    def predictor(self, teacher_head: nn.Module) -> nn.Sequential:
        """What turns the student's map into logits.

        Args:
            teacher_head: the teacher's last linear layer.

        Returns:
            Projector, average over positions and the teacher's layer.
        """
        return nn.Sequential(prepared(self.projector), nn.AdaptiveAvgPool2d(1), nn.Flatten(), teacher_head)


def _convolution(channels: int, wanted: int, size: int) -> list[nn.Module]:
    return [nn.Conv2d(channels, wanted, size, padding=size // 2, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()]
