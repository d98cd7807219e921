"""The one loader: step number in, a whole batch out. Nothing is remembered between steps."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from understudy import randomness
from understudy.data.augment import Normal, augment
from understudy.data.batch import ONCE, Batch, labelled_of
from understudy.data.mix import Mix, mix_images, mix_labels, plan
from understudy.data.repeated import epoch_length, repeat
from understudy.data.source import UNLABELLED
from understudy.data.split import Subset
from understudy.errors import UserError
from understudy.recipe.schema import Augment


@dataclass(frozen=True)
class _Pass:
    """A pass over the samples, in its order: what its steps take slices of."""

    number: int
    ids: np.ndarray
    labels: np.ndarray
    keys: np.ndarray


class Feed(Dataset[Batch]):
    """An endless sequence of training batches: `feed[step]` is a function of the step and the seed alone.

    Args:
        part: the samples.
        batch_size: samples a step; the last step of a pass over them holds what is left.
        seed: of the run.
        settings: the recipe's augmentation.
        classes: number of classes.
        second_view: how another view of each sample is made; None for one view.
        views: from how many views a sample the passes draw, in turn; None makes new ones in each pass.
        views_seed: of those views.
        normal: mean and deviation of the channels, from 0 to 1, of the noise that erases with `erase_fill: normal`.
        shard: the number of this process and how many there are: each makes every so-manieth sample of a batch, as
            DeiT's sampler deals out its copies, and what these are mixed with. Left without any by a short last batch,
            it gets one that counts nothing, for every process has to take the step.
    """

    def __init__(
        self,
        part: Subset,
        *,
        batch_size: int,
        seed: int,
        settings: Augment,
        classes: int,
        second_view: Augment | None = None,
        views: int | None = None,
        views_seed: int = 0,
        normal: Normal = ((0.5,), (0.25,)),
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.part = part
        self.batch_size = min(batch_size, len(part))
        self.key = randomness.key("feed", seed)
        self.settings = settings
        self.classes = classes
        self.second_view = second_view
        self.views = views
        self.views_seed = views_seed
        self.normal = normal
        self.shard = shard
        self.all_labelled = bool((part.labels != UNLABELLED).all())
        self._last: _Pass | None = None

    @property
    def steps_per_pass(self) -> int:
        """Steps until as many samples were served as there are; with repeats, as many as a whole number of 256."""
        samples = len(self.part) if self.settings.repeats == 1 else epoch_length(len(self.part))
        return -(-samples // self.batch_size)

    def __getitem__(self, step: int) -> Batch:
        number, place = divmod(step, self.steps_per_pass)
        here = slice(place * self.batch_size, (place + 1) * self.batch_size)
        current = self._pass(number)
        ids, keys, labels = current.ids[here], current.keys[here], current.labels[here]
        rank, processes = self.shard
        own = np.arange(rank, len(ids), processes)
        share = len(own) / len(ids)
        own = own if len(own) else np.zeros(1, np.int64)
        partner = self._plan(step, len(ids), 1, 1).partner
        # What is made here: all, or this process's samples and those that they are mixed with.
        made, places = np.unique(np.concatenate([own, partner[own]]), return_inverse=True)
        images, second = self._seen(ids[made], keys[made])
        own_labels = torch.from_numpy(labels[own])
        view = self.view(number)
        if self.mixes:
            mix = self._plan(step, len(ids), images.shape[2], images.shape[3])
            mine, others = torch.from_numpy(places).chunk(2)
            images = mix_images(images[mine], images[others], mix)
            own_labels = mix_labels(own_labels, torch.from_numpy(labels[partner[own]]), mix, self.classes)
            if not mix.is_none:  # who is mixed with whom is a matter of the pass and the size of its batches
                view = self._name(number, varies=True, once=True, suffix=f"-mixed-{self.batch_size}")
        labelled = None if self.all_labelled else labelled_of(own_labels)
        known = (labels != UNLABELLED) & (labels[partner] != UNLABELLED)
        labelled_share = known[own].sum() / known.sum() if share and known.any() else share
        return Batch(
            images,
            own_labels,
            torch.from_numpy(ids[own]),
            labelled,
            second,
            view,
            self._second_name(number),
            share,
            float(labelled_share),
        )

    def group(self, start: int, stop: int) -> list[Batch]:
        """The batches of steps `start` to `stop`: the same as one by one, and made at once where samples stand alone.

        Args:
            start: the first step.
            stop: one past the last.
        """
        if self.mixes or self.shard[1] > 1:
            return [self[step] for step in range(start, stop)]
        batches: list[Batch] = []
        while start < stop:
            number, place = divmod(start, self.steps_per_pass)
            count = min(stop - start, self.steps_per_pass - place)
            batches += self._of_pass(number, slice(place * self.batch_size, (place + count) * self.batch_size))
            start += count
        return batches

    def _of_pass(self, number: int, here: slice) -> list[Batch]:
        """Whole batches that lie one after the other in a pass."""
        current = self._pass(number)
        images, second = self._seen(current.ids[here], current.keys[here])
        labels, ids = torch.from_numpy(current.labels[here]), torch.from_numpy(current.ids[here])
        parts = [tensor.split(self.batch_size) for tensor in (images, labels, ids)]
        seconds = [None] * len(parts[0]) if second is None else second.split(self.batch_size)
        names = self.view(number), self._second_name(number)
        return [
            Batch(images, labels, ids, None if self.all_labelled else labelled_of(labels), second, *names)
            for images, labels, ids, second in zip(*parts, seconds, strict=True)
        ]

    def _seen(self, ids: np.ndarray, keys: np.ndarray) -> tuple[Tensor, Tensor | None]:
        """Samples in the view of their keys, and in another one where the recipe asks for two."""
        pixels = self.part.samples.read(ids, keys)
        images = self._augmented(pixels, keys, self.settings)
        if self.second_view is None:
            return images, None
        return images, self._augmented(pixels, randomness.keys(randomness.key("second"), keys), self.second_view)

    def _pass(self, number: int) -> _Pass:
        """Order and keys of a pass, a function of its number; the last one is kept only to save the sort."""
        if self._last is None or self._last.number != number:
            order = randomness.permutation(randomness.key(self.key, "order", number), len(self.part))
            copies = np.zeros(len(order), np.int64)
            if self.settings.repeats > 1:
                places = repeat(order, self.settings.repeats)
                order, copies = order[places], np.arange(len(places)) - np.searchsorted(places, places)
            ids = self.part.ids[order]
            keys = randomness.keys(self._view_key(number), ids)
            for copy in range(1, copies.max(initial=0) + 1):  # a view of its own each time
                parent = randomness.key(self.key, "view", number, copy)
                keys[copies == copy] = randomness.keys(parent, ids[copies == copy])
            self._last = _Pass(number, ids, self.part.labels[order], keys)
        return self._last

    def _view_key(self, number: int) -> int:
        """What the views of a pass are drawn from: with a fixed set of them the same for every seed."""
        if self.views is None:
            return randomness.key(self.key, "view", number)
        return randomness.key("view", self.views_seed, number % self.views)

    def view(self, number: int) -> str:
        """The name of a pass's view, but for the steps that mix; empty where a sample may be seen in several."""
        return self._name(number, varies=self.varies)

    def _second_name(self, number: int) -> str:
        return self._name(number, varies=True, suffix="-second")

    def _name(self, number: int, *, varies: bool, once: bool = False, suffix: str = "") -> str:
        if self.settings.repeats > 1:
            return ""
        if not varies:
            return "plain"
        if self.views is not None and not once:
            return f"view-{self._changes_mark}-{self.views_seed}-{number % self.views}{suffix}"
        return f"{ONCE}{self._changes_mark}-{self.key:016x}-{number}{suffix}"

    @cached_property
    def _changes_mark(self) -> str:
        """Tells kinds of changes apart in the names of views."""
        second = "" if self.second_view is None else self.second_view.model_dump_json()
        return f"{randomness.key(self.settings.model_dump_json(), second):016x}"[:8]

    @cached_property
    def varies(self) -> bool:
        """Whether a sample looks otherwise in another pass."""
        if self._changes(self.settings):
            return True
        ids = self.part.ids[:2]
        here, there = (self.part.samples.read(ids, randomness.keys(randomness.key(word), ids)) for word in ("a", "b"))
        return not torch.equal(here, there)

    def first_like(self, number: int) -> int:
        """The first pass that shows the same as this one, in another order."""
        if self.mixes or self.settings.repeats > 1:
            return number
        if self.views is not None:
            return number % self.views
        return number if self.varies or self.second_view is not None else 0

    @property
    def has_few_views(self) -> bool:
        """Whether later passes show samples as earlier ones did, but for those that are mixed."""
        return self.view(0) != "" and (not self.varies or self.views is not None)

    def _changes(self, settings: Augment) -> bool:
        return bool(settings.crop or settings.flip or settings.color_jitter or settings.erase or settings.rand_augment)

    def _augmented(self, images: Tensor, keys: np.ndarray, settings: Augment) -> Tensor:
        strength = settings.rand_augment
        if not self._changes(settings):
            return images
        if images.dtype != torch.uint8:
            raise UserError(f"changes uint8 images (0 to 255), these are {images.dtype}", where="data.augment")
        return augment(
            images,
            keys,
            crop=settings.crop,
            flip=settings.flip,
            color_jitter=settings.color_jitter,
            rand_augment=(strength.ops, strength.magnitude) if strength else None,
            rand_augment_std=strength.std if strength else 0.0,
            rand_augment_as=strength.operations if strength else "torchvision",
            erase=settings.erase,
            erase_with=self.normal if settings.erase_fill == "normal" else None,
        )

    @property
    def mixes(self) -> bool:
        """Whether samples are mixed with others, and their labels with them."""
        return bool(self.settings.mixup or self.settings.cutmix)

    def _plan(self, step: int, size: int, height: int, width: int) -> Mix:
        """How the whole batch of a step is mixed; who with whom does not depend on the images' size."""
        return plan(
            randomness.key(self.key, "mix", step),
            size,
            mixup=self.settings.mixup,
            cutmix=self.settings.cutmix,
            height=height,
            width=width,
        )

    def groups(self, start: int, stop: int, size: int, workers: int = 0) -> Iterator[list[Batch]]:
        """The batches of steps `start` to `stop` in groups, made here or by worker processes: the same either way.

        Args:
            start: the first step.
            stop: one past the last.
            size: steps of a group.
            workers: how many processes make them; 0 makes them here.
        """
        spans = [(first, min(first + size, stop)) for first in range(start, stop, size)]
        if not workers:
            return (self.group(*span) for span in spans)
        loader = DataLoader(
            _Groups(self),
            batch_size=None,
            sampler=spans,  # pyright: ignore[reportArgumentType]
            num_workers=workers,
            prefetch_factor=4,
            worker_init_fn=_leave_signals_to_the_run,
        )
        return iter(loader)


class _Groups(Dataset[list[Batch]]):
    """A feed by spans of steps."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed

    def __getitem__(self, span: tuple[int, int]) -> list[Batch]:
        return self.feed.group(*span)


def _leave_signals_to_the_run(_worker: int) -> None:
    """A signal to the whole process group ends the run after a checkpoint, and the run ends its workers."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


def in_order(part: Subset, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images and labels of a part, unchanged and in order, in batches of one size (the last may be short)."""
    for start in range(0, len(part), size):
        positions = np.arange(start, min(start + size, len(part)))
        yield part.read(positions), torch.from_numpy(part.labels[positions])
