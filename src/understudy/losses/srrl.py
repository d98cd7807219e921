"""Softmax regression representation learning: features that the teacher's own classifier reads rightly."""

import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import check_map, without_autocast
from understudy.losses.functional import as_map, check_same_shape, in_float32, pooled, prepared


class SRRL(nn.Module):
    """The student's features have the teacher's means, and the teacher's last layer gives its logits for them.

    With r a 1×1 convolution, batch norm and ReLU, f the means over positions and W the teacher's last layer:
    `α mean (f(r(F_s)) - f(F_t))² + β mean (W f(r(F_s)) - z_t)²`.

    Reference: Yang, Martinez, Bulat, Tzimiropoulos, "Knowledge Distillation via Softmax Regression Representation
    Learning", ICLR 2021 (https://openreview.net/forum?id=ZzwDy_wiWv), equations 2 to 5; code
    https://github.com/jingyang2017/KD_SRRL.

    Args:
        features: α.
        logits: β; cls_KD takes 5.
    """

    with_logits = True

    def __init__(self, *, features: float = 1.0, logits: float = 1.0) -> None:
        super().__init__()
        self.features = features
        self.logits = logits
        self.connector: nn.Sequential | None = None

    def prepare(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...]) -> None:
        """Make the connector.

        Args:
            student: example features and logits.
            teacher: example features and logits.
        """
        check_map(as_map(student[0]))
        check_map(as_map(teacher[0]))
        channels, wanted = student[0].shape[1], teacher[0].shape[1]
        self.connector = nn.Sequential(
            nn.Conv2d(channels, wanted, 1, bias=False), nn.BatchNorm2d(wanted), nn.ReLU()
        ).to(student[0].device)

    @without_autocast
    def forward(self, student: tuple[Tensor, ...], teacher: tuple[Tensor, ...], *, teacher_head: nn.Module) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) map or (N, C) embedding, and the logits, which are not looked at.
            teacher: its last map or embedding, and its (N, K) logits; never a gradient.
            teacher_head: the teacher's last linear layer, (N, D) to (N, K).

        Returns:
            A scalar.
        """
        features, target, teacher_logits = in_float32(student[0], teacher[0].detach(), teacher[-1].detach())
        connected = prepared(self.connector)(as_map(features))
        read = teacher_head(pooled(connected))
        of_features, of_logits = regression(connected, target, read, teacher_logits)
        return self.features * of_features + self.logits * of_logits


def regression(connected: Tensor, teacher: Tensor, read: Tensor, teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts: of the features' means, and of the logits that the teacher's layer reads from them."""
    check_same_shape(read, teacher_logits)
    return F.mse_loss(pooled(connected), pooled(teacher)), F.mse_loss(read, teacher_logits)
