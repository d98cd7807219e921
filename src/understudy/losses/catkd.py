"""Class attention transfer: where each class is seen."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from understudy.losses.features import without_autocast
from understudy.losses.functional import check_same_shape, in_float32


class CATKD(nn.Module):
    """The student's class activation maps, small and scaled to length 1, follow the teacher's.

    With A the maps averaged to R × R positions and each scaled to length 1: `mean (A_s - A_t)²`. A class's map is
    what the last linear layer W, b gives at every place before the average: `W F + b`. It takes classifiers that
    average a map and end in a linear layer, and taps that map.

    Reference: Guo, Yan, Li, Lin, "Class Attention Transfer Based Knowledge Distillation", CVPR 2023
    (https://arxiv.org/abs/2304.12777), equation 6; code https://github.com/GzyAftermath/CAT-KD (MIT).
    The authors put a 1×1 convolution in the place of the linear layer, which computes the same; their configurations
    do not scale the maps. For `classes=k` the original's CAMs_Nums is k + 1: it counts one too many.

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

    @without_autocast
    def forward(
        self, student: Tensor, teacher: Tensor, *, student_model: nn.Module, teacher_model: nn.Module
    ) -> Tensor:
        """Compute the loss.

        Args:
            student: (N, C, H, W) the map that the student averages before its last linear layer.
            teacher: the teacher's, of any channels and size; never a gradient.
            student_model: the student, for its last linear layer.
            teacher_model: the teacher, likewise.

        Returns:
            A scalar.

        Raises:
            ValueError: a model's last linear layer does not take the channels of its map.
        """
        return self.of_class_maps(_class_maps(student, student_model), _class_maps(teacher, teacher_model))

    def of_class_maps(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of class activation maps.

        Args:
            student: (N, K, H, W).
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


def _class_maps(features: Tensor, model: nn.Module) -> Tensor:
    if features.ndim != 4:
        raise ValueError(f"a class is seen somewhere only in maps (N, C, H, W), not in {tuple(features.shape)}")
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not layers or layers[-1].in_features != features.shape[1]:
        raise ValueError(
            f"a map of {features.shape[1]} channels is not what the model's last linear layer reads: tap the one that "
            "is averaged before it"
        )
    (features,) = in_float32(features)
    weight, bias = (None if each is None else each.to(features.dtype) for each in (layers[-1].weight, layers[-1].bias))
    assert weight is not None
    return F.conv2d(features, weight[:, :, None, None], bias)
