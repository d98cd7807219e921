"""Feature-based distillation for detectors: attended features, attention itself, and relations between positions."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import Features, paired_maps, without_autocast
from understudy.losses.functional import check_same_shape, prepared


class FBKD(nn.Module):
    """Features where either model looks, both attentions and the relations of positions follow the teacher's.

    With a 1×1 convolutions, m the mean of both attentions over positions, and R the outcome of a non-local block:
    `λ_f √Σ m (a(F_s) - F_t)² + λ_c ‖a(mean_hw F_s) - mean_hw F_t‖ + λ_p ‖a(mean_c F_s) - mean_c F_t‖
    + λ_r ‖a(R_s) - R_t‖`, summed over taps.

    Reference: Zhang, Ma, "Improve Object Detection with Feature-based Knowledge Distillation: Towards Accurate and
    Efficient Detectors", ICLR 2021 (https://openreview.net/forum?id=uKhGRvM8QNH), equations 1 to 6; code
    https://github.com/ArchipLab-LinfengZhang/Object-Detection-Knowledge-Distillation-ICLR2021, conventions of
    https://github.com/open-mmlab/mmrazor (Apache 2.0). Channels of the two sides may differ here.

    Args:
        features: λ_f.
        channels: λ_c.
        positions: λ_p.
        relations: λ_r.
        temperature: of the attention over positions.
        reduction: how many times narrower the non-local block is inside.
        stride: keys and values of the non-local block are pooled by this much.
    """

    def __init__(
        self,
        *,
        features: float = 7e-5,
        channels: float = 4e-3,
        positions: float = 4e-3,
        relations: float = 7e-5,
        temperature: float = 0.5,
        reduction: int = 2,
        stride: int = 1,
    ) -> None:
        super().__init__()
        self.features = features
        self.channels = channels
        self.positions = positions
        self.relations = relations
        self.temperature = temperature
        self.reduction = reduction
        self.stride = stride
        self.adapters: nn.ModuleList | None = None

    def prepare(self, student: Features, teacher: Features) -> None:
        """Make the adapting layers and the non-local blocks.

        Args:
            student: example maps.
            teacher: example maps.
        """
        self.adapters = nn.ModuleList()
        for ours, theirs in paired_maps(student, teacher):
            width, wanted = ours.shape[1], theirs.shape[1]
            layers = {
                "features": nn.Conv2d(width, wanted, 1),
                "channels": nn.Linear(width, wanted),
                "positions": nn.Conv2d(1, 1, 3, padding=1),
                "relations": nn.Conv2d(width, wanted, 1),
                "student": NonLocal(width, reduction=self.reduction, stride=self.stride),
                "teacher": NonLocal(wanted, reduction=self.reduction, stride=self.stride),
            }
            self.adapters.append(nn.ModuleDict(layers))
            self.to(ours.device)

    @without_autocast
    def forward(self, student: Features, teacher: Features) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) maps of one tap or of several.
            teacher: as many maps of the same sizes; they get no gradient, but their non-local blocks learn.

        Returns:
            A scalar.
        """
        parts = zip(paired_maps(student, teacher), prepared(self.adapters), strict=True)
        return torch.stack([self._of_tap(ours, theirs, adapt) for (ours, theirs), adapt in parts]).sum()

    def _of_tap(self, student: Tensor, teacher: Tensor, adapt: nn.Module) -> Tensor:
        assert isinstance(adapt, nn.ModuleDict)
        check_same_shape(student[:, :1], teacher[:, :1])
        attention = (self._attention(student.detach()) + self._attention(teacher)) / 2
        adapted = adapt["features"](student)
        # The norm's gradient at 0 is 0, the square root's would be NaN.
        features = torch.linalg.vector_norm((adapted - teacher) * attention.sqrt())
        channels = torch.dist(adapt["channels"](student.mean(dim=(2, 3))), teacher.mean(dim=(2, 3)))
        positions = torch.dist(adapt["positions"](student.mean(dim=1, keepdim=True)), teacher.mean(dim=1, keepdim=True))
        relations = torch.dist(adapt["relations"](adapt["student"](student)), adapt["teacher"](teacher))
        return (
            self.features * features
            + self.channels * channels
            + self.positions * positions
            + self.relations * relations
        )

    def _attention(self, features: Tensor) -> Tensor:
        """(N, 1, H, W) how large the features are at each position, softened; 1 on average."""
        strength = features.abs().mean(dim=1, keepdim=True)
        softened = F.softmax(strength.flatten(1) / self.temperature, dim=1) * strength[0].numel()
        return softened.view_as(strength)


class NonLocal(nn.Module):
    """A non-local block by inner products: every position adds what all others tell it.

    Reference: Wang, Girshick, Gupta, He, "Non-local Neural Networks", CVPR 2018 (https://arxiv.org/abs/1711.07971).

    Args:
        channels: of the map.
        reduction: how many times narrower the block is inside.
        stride: keys and values are pooled by this much.
    """

    def __init__(self, channels: int, *, reduction: int, stride: int) -> None:
        super().__init__()
        narrow = max(channels // reduction, 1)
        self.query = nn.Conv2d(channels, narrow, 1)
        self.key = nn.Conv2d(channels, narrow, 1)
        self.value = nn.Conv2d(channels, narrow, 1)
        self.pool = nn.MaxPool2d(stride) if stride > 1 else nn.Identity()
        self.out = nn.Sequential(nn.Conv2d(narrow, channels, 1, bias=False), nn.BatchNorm2d(channels))
        # Starts as the identity.
        nn.init.zeros_(self.out[1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, features: Tensor) -> Tensor:
        """The map (N, C, H, W) with the block's answer added."""
        query = self.query(features).flatten(2)
        key, value = self.pool(self.key(features)).flatten(2), self.pool(self.value(features)).flatten(2)
        # (value keyᵀ) query: a small matrix first, instead of one of all pairs of positions.
        answer = (value @ key.mT / key.shape[2]) @ query
        return features + self.out(answer.unflatten(2, tuple(features.shape[2:])))
