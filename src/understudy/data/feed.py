"""The one loader: step number in, a whole batch out. Nothing is remembered between steps."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from understudy import randomness
from understudy.data.augment import augment
from understudy.data.mix import mix_images, mix_labels, plan
from understudy.data.source import UNLABELLED
from understudy.data.split import Subset
from understudy.recipe.schema import Augment


@dataclass(frozen=True)
class Batch:
    """What one step sees, the same for every arm.

    Args:
        images: (N, C, H, W) pixels after augmentation, before any model's own preprocessing.
        labels: (N,) class numbers, -1 where unlabelled; or (N, K) probabilities after mixup and cutmix.
        sample_ids: (N,) numbers of the samples in their source.
        labelled: (M,) positions of the samples with a label; None when all have one.
    """

    images: Tensor
    labels: Tensor
    sample_ids: Tensor
    labelled: Tensor | None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        if device.type == "cpu":
            return self
        moved = {name: value.to(device, non_blocking=True) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    def at(self, rows: Tensor) -> "Batch":
        """The samples at these positions."""
        labels = self.labels[rows]
        labelled = None if self.labelled is None else _labelled(labels)
        return Batch(self.images[rows], labels, self.sample_ids[rows], labelled)


def _labelled(labels: Tensor) -> Tensor | None:
    has_label = labels.sum(1) > 0 if labels.ndim == 2 else labels != UNLABELLED
    return None if has_label.all() else has_label.nonzero().flatten()


class Feed(Dataset[Batch]):
    """An endless sequence of training batches: `feed[step]` is a function of the step and the seed alone.

    Args:
        part: the samples.
        batch_size: samples a step; the last step of a pass over them holds what is left.
        seed: of the run.
        settings: the recipe's augmentation.
        classes: number of classes.
    """

    def __init__(self, part: Subset, *, batch_size: int, seed: int, settings: Augment, classes: int) -> None:
        self.part = part
        self.batch_size = min(batch_size, len(part))
        self.key = randomness.key("feed", seed)
        self.settings = settings
        self.classes = classes
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    @property
    def steps_per_pass(self) -> int:
        """Steps until every sample was served once."""
        return -(-len(self.part) // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        passed, place = divmod(step, self.steps_per_pass)
        if self._order[0] != passed:  # only to save the sort: the order is a function of the pass
            self._order = (
                passed,
                randomness.permutation(randomness.key(self.key, "order", passed), len(self.part)),
            )
        positions = self._order[1][place * self.batch_size : (place + 1) * self.batch_size]
        images, labels = self._views(positions, passed)
        mixup, cutmix = self.settings.mixup, self.settings.cutmix
        if mixup or cutmix:
            mix = plan(
                randomness.key(self.key, "mix", step),
                len(positions),
                mixup=mixup,
                cutmix=cutmix,
                height=images.shape[2],
                width=images.shape[3],
            )
            partner = torch.from_numpy(mix.partner)
            images = mix_images(images, images[partner], mix)
            labels = mix_labels(labels, labels[partner], mix, self.classes)
        ids = torch.from_numpy(self.part.ids[positions])
        return Batch(images, labels, ids, _labelled(labels))

    def _views(self, positions: np.ndarray, passed: int) -> tuple[Tensor, Tensor]:
        ids = self.part.ids[positions]
        keys = randomness.keys(randomness.key(self.key, "view", passed), ids)
        images = self.part.samples.read(ids, keys)
        settings = self.settings
        if images.dtype == torch.uint8:
            strength = settings.rand_augment
            images = augment(
                images,
                keys,
                crop=settings.crop,
                flip=settings.flip,
                rand_augment=(strength.ops, strength.magnitude) if strength else None,
                erase=settings.erase,
            )
        return images, torch.from_numpy(self.part.labels[positions])

    def batches(self, start: int, stop: int, workers: int = 0) -> Iterator[Batch]:
        """The batches of steps `start` to `stop`, made here or by worker processes: the same either way."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=range(start, stop),
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
        return iter(loader)


def in_order(part: Subset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of a part, unchanged and in order, in batches of one size (the last may be short)."""
    for start in range(0, len(part), size):
        positions = np.arange(start, min(start + size, len(part)))
        yield part.read(positions), torch.from_numpy(part.labels[positions])
