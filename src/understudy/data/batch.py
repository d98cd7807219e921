"""What one step of training sees."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from understudy.data.source import UNLABELLED

# How the name of a view begins that no later pass shows again, so that only a later run of the same seed sees it.
ONCE = "pass-"


@dataclass(frozen=True)
class Batch:
    """What one step sees, the same for every arm.

    Args:
        images: (N, C, H, W) pixels after augmentation, before any model's own preprocessing.
        labels: (N,) class numbers, -1 where unlabelled; or (N, K) probabilities after mixup and cutmix.
        sample_ids: (N,) numbers of the samples in their source.
        labelled: (M,) positions of the samples with a label; None when all have one.
        second: (N, C, H, W) another view of the same samples, where the recipe asks for one.
        view: names the view that all these samples are seen in: equal names and ids mean equal pixels. It begins with
            `ONCE` where no later pass shows them so again, and is empty where a sample is seen in several.
        second_view: the same of `second`.
        share: the part of the step's whole batch that these are; below 1 where several processes or micro-batches
            share it.
        labelled_share: the part of the whole batch's labelled samples.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    labelled: Tensor | None
    second: Tensor | None = None
    view: str = ""
    second_view: str = ""
    share: float = 1.0
    labelled_share: float = 1.0

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in tensors.items()})

    def at(self, rows: Tensor) -> "Batch":
        """The samples at these positions."""
        labels = self.labels[rows]
        labelled = None if self.labelled is None else labelled_of(labels)
        second = None if self.second is None else self.second[rows]
        share, labelled_share = self.share * len(rows) / len(self), self.labelled_share * len(rows) / len(self)
        if self.labelled is not None and len(self.labelled):
            known = len(rows) if labelled is None else len(labelled)
            labelled_share = self.labelled_share * known / len(self.labelled)
        return replace(
            self,
            images=self.images[rows],
            labels=labels,
            sample_ids=self.sample_ids[rows],
            labelled=labelled,
            second=second,
            share=share,
            labelled_share=labelled_share,
        )


def labelled_of(labels: Tensor) -> Tensor | None:
    """Positions of the samples with a label; None when all have one.

    Args:
        labels: (N,) class numbers, -1 where unlabelled; or (N, K) probabilities, none where unlabelled.
    """
    has_label = labels.sum(1) > 0 if labels.ndim == 2 else labels != UNLABELLED
    return None if has_label.all() else has_label.nonzero().flatten()
