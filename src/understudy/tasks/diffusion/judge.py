"""The classifier that samples are judged by: trained on the run's own images, its last features are the yardstick."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from understudy import randomness
from understudy.distill import Distiller, Objective
from understudy.losses import CrossEntropy
from understudy.recipe.schema import Train
from understudy.tasks.diffusion.settings import Judge as Settings

_CHUNK = 500
# Height and width that the dense layer sees at most.
_SIDE = 4


def classifier(*, classes: int, shape: tuple[int, int, int], widths: tuple[int, ...], features: int) -> nn.Sequential:
    """Build stages of two 3x3 convolutions, then a dense layer whose outputs are the features.

    Plain on purpose. The dense layer sees where things are: features that are averaged over the image, or normalised,
    hardly notice the blur and the faintness that too few steps make.

    Args:
        classes: number of logits.
        shape: (C, H, W) of one image.
        widths: channels of each stage; between stages the resolution is halved.
        features: number of features.
    """
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for place, width in enumerate(widths):
        if place:
            layers.append(nn.MaxPool2d(2))
            side //= 2
        for inputs in (channels, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        channels = width
    side = min(side, _SIDE)
    layers += [nn.AdaptiveAvgPool2d(side), nn.Flatten(), nn.Linear(channels * side**2, features), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(features, classes))


class Judge:
    """A classifier with its features of images.

    Args:
        model: a `classifier`; what comes before its last layer are the features.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = cast(nn.Sequential, model).eval()
        self.device = next(model.parameters()).device

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, D) features of images in [-1, 1]."""
        body = self.model[:-1]
        return torch.cat([body(part.clamp(-1, 1).to(self.device)).cpu() for part in images.split(_CHUNK)])

    @torch.no_grad()
    def classes(self, features: Tensor) -> Tensor:
        """(N,) the class that it takes each image for, from its features."""
        return self.model[-1](features.to(self.device)).argmax(1).cpu()


def judge_learner(settings: Settings, *, classes: int, shape: tuple[int, int, int], seed: int) -> Distiller:
    """The classifier with its loss, as the training loop takes it."""
    randomness.seed_torch(randomness.key("init", "judge", seed))
    model = classifier(classes=classes, shape=shape, widths=settings.widths, features=settings.features)
    return Distiller(
        student=model, objectives=[Objective(CrossEntropy(), name="labels")], example=torch.zeros(2, *shape)
    )


def judge_settings(settings: Settings, machine: dict[str, Any]) -> Train:
    """How the classifier is trained."""
    return Train(
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        optimizer="adamw",
        lr=settings.lr,
        schedule="cosine",
        **machine,
    )
