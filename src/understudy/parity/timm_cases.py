"""What timm's own distillation tasks computed, which DeiT's recorded cases hold beside the original's."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from understudy.distill import Teacher
from understudy.losses import KD, CrossEntropy, FeatureRegression, HardLabel

Arrays = dict[str, NDArray[Any]]
Settings = dict[str, Any]
Computed = dict[str, Tensor]

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _MeanColour(nn.Module):
    """The teacher of timm's cases: a linear layer on the mean of each channel."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        """Compute the logits of images (N, 3, H, W)."""
        return images.mean((2, 3)) @ self.weight


def timm_task(arrays: Arrays, settings: Settings) -> Computed:
    """Compute a case of timm's: each of its three tasks is a sum of two of our objectives, with weights of their own.

    Args:
        arrays: of the case.
        settings: its conventions.
    """
    images = torch.tensor(arrays["x"])
    mean, std = _normalisation(settings["student_norm"], images)
    teacher_mean, teacher_std = _normalisation(settings["teacher_norm"], images)
    teacher_input = (images * std + mean - teacher_mean) / teacher_std
    teacher_logits = Teacher(_MeanColour(torch.tensor(arrays["teacher_w"])))(teacher_input).logits
    assert teacher_logits is not None
    logits = leaf(arrays["student_logits"])
    task_loss = CrossEntropy()(logits, labels=torch.tensor(arrays["labels"]))
    leaves = {"grad_student_logits": logits}
    if settings["task"] == "feature":
        feature = leaves["grad_student_feat"] = leaf(arrays["student_feat"])
        kd_loss = FeatureRegression()(_projected(feature, arrays), torch.tensor(arrays["teacher_feat"]))
    elif settings["task"] == "token":
        token = leaves["grad_student_dist_logits"] = leaf(arrays["student_dist_logits"])
        soft = settings["distill_type"] == "soft"
        kd_loss = (KD(temperature=settings["temperature"]) if soft else HardLabel())(token, teacher_logits)
    else:
        kd_loss = KD(temperature=settings["temperature"])(logits, teacher_logits)
    of_task, of_teacher = settings["resolved"]
    loss = of_task * task_loss + of_teacher * kd_loss
    return {
        "loss": loss,
        "task_loss": task_loss,
        "kd_loss": kd_loss,
        "teacher_input": teacher_input,
        "teacher_logits": teacher_logits,
        **gradients(loss, **leaves),
    }


def _normalisation(words: str, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation by channel, which a manifest gives in words: `imagenet` or `mean=std=.5`."""
    mean, std = _IMAGENET_MEAN, _IMAGENET_STD
    if words != "imagenet":
        mean = std = (float(words.removeprefix("mean=std=")),) * images.shape[1]
    return images.new_tensor(mean).view(1, -1, 1, 1), images.new_tensor(std).view(1, -1, 1, 1)


def _projected(feature: Tensor, arrays: Arrays) -> Tensor:
    if "proj_weight" not in arrays:
        return feature
    return nn.functional.linear(feature, torch.tensor(arrays["proj_weight"]), torch.tensor(arrays["proj_bias"]))


def leaf(array: NDArray[Any]) -> Tensor:
    """A recorded input whose gradient is wanted."""
    return torch.tensor(array, requires_grad=True)


def gradients(loss: Tensor, **leaves: Tensor) -> Computed:
    """The gradient of each input by the name it was recorded under; zeros where the loss does not read it."""
    found = torch.autograd.grad(
        loss, list(leaves.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return dict(zip(leaves, found, strict=True))
