"""What the teacher said, kept on disk: asked again about the same pixels, it need not be run.

An answer is found by the sample and the view it was seen in, and counts only if the pixels are the very ones: with each
row stands a check over its own bytes and over the pixels that it answers. So a row that was torn by a crash, damaged
on the disk, or made for other data under the same name is not found, and the teacher is run.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from torch import Tensor

from understudy.data.batch import ONCE
from understudy.distill.cache_files import Shards
from understudy.distill.cache_rows import Found, Kept, Layout, pixel_marks
from understudy.distill.teacher import Answer, Place, Teacher

# What may be held in memory of answers that were found and checked.
_HELD_BYTES = 2**28


@dataclass
class Counts:
    """How often the cache knew the answer.

    Args:
        hits: images whose answer was there.
        misses: images that the teacher was asked about.
        odd: rows that were there but damaged, or about other pixels.
        mass: the probability that the kept logits hold, summed over the images weighed; for `top`.
        weighed: images that `mass` is about.
    """

    hits: int = 0
    misses: int = 0
    odd: int = 0
    mass: float = 0.0
    weighed: int = 0

    @property
    def asked(self) -> int:
        """Images that an answer was wanted for."""
        return self.hits + self.misses

    @property
    def rate(self) -> float:
        """The share of images whose answer was there."""
        return self.hits / max(self.asked, 1)

    def weigh(self, logits: Tensor, top: int) -> None:
        """Count the probability in the largest of some logits."""
        self.mass += float(logits.softmax(1).topk(min(top, logits.shape[1]), dim=1).values.sum())
        self.weighed += len(logits)


class AnswerCache:
    """The answers of one teacher to one source of samples, in files below a folder.

    Each stored thing (the logits, or a tapped feature) and view has rows, one a sample; they are memory-mapped, filled
    as answers come, and shared by every run with the same identity.

    Args:
        root: below which all caches are; this one's folder is named by its identity.
        identity: what answers depend on: the teacher's weights, preprocessing, chunk, device, threads, versions.
        samples: of the source.
        kept: how.
        fixed: whether a sample's pixels in a view stay the same while the program runs: they are then looked at once,
            and small answers to them are held in memory.
    """

    def __init__(
        self,
        root: Path,
        identity: Mapping[str, Any],
        samples: int,
        kept: Kept = Kept(),  # noqa: B008 (frozen)
        *,
        fixed: bool = False,
    ) -> None:
        about = {**identity, "samples": samples, "kept": kept.precision, "top": kept.top}
        name = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:24]
        self.folder = root / name
        self.samples = samples
        self.kept = kept
        self.fixed = fixed
        self.counts = Counts()
        self.stopped = ""  # why nothing more is kept, once that is so
        self._about = about
        self._layouts: dict[str, Layout] = {}
        self._shards: dict[tuple[str, str], Shards] = {}
        self._marks: dict[str, Tensor] = {}
        self._held: dict[tuple[str, str], tuple[Tensor, Tensor]] = {}

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_blocks * 512 for file in self.folder.glob("*") if file.is_file())

    @property
    def not_whole(self) -> int:
        """How many files were found cut short."""
        return sum(len(shards.not_whole) for shards in self._shards.values())

    def keeps(self, view: str, *, features: bool) -> bool:
        """Whether answers to a view are kept.

        Args:
            view: its name; empty for pixels that are no view of one sample.
            features: whether tapped features are wanted with them.
        """
        return bool(view) and (self.kept.once or not view.startswith(ONCE)) and (self.kept.features or not features)

    def answer(
        self,
        teacher: Teacher,
        images: Tensor,
        places: Sequence[Place],
        *,
        taps: tuple[str, ...] = (),
        logits: bool = True,
    ) -> Answer:
        """The teacher's answer to a batch: what is known from the files, the rest from the teacher, who is then kept.

        Args:
            teacher: asked about the images that are not known.
            images: (N, C, H, W), as the teacher's `preprocess` wants them.
            places: where their answers are kept, in the same order.
            taps: module paths whose outputs are wanted too.
            logits: whether the logits are wanted.
        """
        views = {view: here for view, here in _by_view(places).items() if self.keeps(view, features=bool(taps))}
        if not views:
            self.counts.misses += len(images)
            return teacher(images, taps=taps, logits=logits)
        ids = torch.cat([place.ids for place in places]).cpu()
        marks = torch.zeros(len(images), dtype=torch.int64)
        known = torch.zeros(len(images), dtype=torch.bool)
        values: dict[str, Tensor] = {}
        wanted = (*(teacher.says if logits else ()), *map(_of_tap, taps))
        for view, here in views.items():
            marks[here] = self._marks_of(view, ids[here], images[here])
            found = {item: self._find(item, view, ids[here], marks[here]) for item in wanted}
            rows = {item: row for item, row in found.items() if row is not None}
            if len(rows) < len(wanted):
                continue
            known[here] = torch.stack([row.valid for row in rows.values()]).all(0)
            self.counts.odd += max(row.odd for row in rows.values())
            if not known[here].any():
                continue
            for item, row in rows.items():
                if item not in values:
                    values[item] = row.values.new_zeros((len(images), *row.values.shape[1:]))
                values[item][here] = row.values
        self.counts.hits += int(known.sum())
        self.counts.misses += len(images) - int(known.sum())
        values = {item: value.to(images.device) for item, value in values.items()}
        if not known.all():
            self._ask(teacher, images, known, values, taps, logits)
            for view, here in views.items():
                self._keep_new(view, here, known, ids, marks, values)
        if self.kept.top is not None and logits:
            for here in views.values():
                self.counts.weigh(values["logits"][here], self.kept.top)
        features = {path: values[_of_tap(path)] for path in taps}
        return Answer(values.get("logits"), features, values.get("members"))

    def _marks_of(self, view: str, ids: Tensor, images: Tensor) -> Tensor:
        """The marks of samples in a view; remembered where a later pass shows the same pixels."""
        if not self.fixed or view.startswith(ONCE):
            return pixel_marks(images)
        if view not in self._marks:
            self._marks[view] = torch.zeros(self.samples, dtype=torch.int64)
        known = self._marks[view]
        marks = known[ids]
        new = marks == 0
        if new.any():
            marks[new] = pixel_marks(images if new.all() else images[new.to(images.device)])
            known[ids] = marks
        return marks

    def _ask(
        self,
        teacher: Teacher,
        images: Tensor,
        known: Tensor,
        values: dict[str, Tensor],
        taps: tuple[str, ...],
        logits: bool,
    ) -> None:
        """Ask the teacher about what is not known, and put its values in their places."""
        unknown = (~known).nonzero().flatten().to(images.device)
        told = teacher(images[unknown], taps=taps, logits=logits)
        features = {_of_tap(path): value for path, value in told.features.items()}
        said = {"logits": told.logits, "members": told.members, **features}
        for item, value in said.items():
            if value is None:
                continue
            if item not in values:
                values[item] = value.new_zeros((len(images), *value.shape[1:]), dtype=torch.float32)
            values[item][unknown] = value.float()

    def _keep_new(
        self, view: str, here: Tensor | slice, known: Tensor, ids: Tensor, marks: Tensor, values: dict[str, Tensor]
    ) -> None:
        """Keep what was asked in one view; and let nobody learn from more than what a later run would find."""
        new = torch.arange(len(ids))[here]
        new = new[~known[new]]
        for item, value in values.items():
            layout = self.kept.layout(item, value)
            rows = value[new.to(value.device)]
            self._keep(item, view, layout, ids[new], marks[new], rows)
            if not self.kept.is_exact:
                value[new.to(value.device)] = layout.rounded(rows)

    def _keep(self, item: str, view: str, layout: Layout, ids: Tensor, marks: Tensor, rows: Tensor) -> None:
        if self.stopped or not len(ids):
            return
        try:
            self._make(item, layout)
            shards = self._shards_of(item, view)
            assert shards is not None
            shards.write(ids, marks, rows)
        except OSError as error:  # the disk is full, or may not be written to
            self.stopped = f"{error.strerror or error} ({self.folder})"

    def _find(self, item: str, view: str, ids: Tensor, marks: Tensor) -> Found | None:
        shards = self._shards_of(item, view)
        if shards is None:
            return None
        held = self._held_of(item, view, shards.layout)
        if held is None:
            return shards.read(ids, marks)
        values, known = held
        if known[ids].all():
            return Found(values[ids], torch.ones(len(ids), dtype=torch.bool), 0)
        found = shards.read(ids, marks)
        values[ids[found.valid]] = found.values[found.valid]
        known[ids[found.valid]] = True
        return found

    def _held_of(self, item: str, view: str, layout: Layout) -> tuple[Tensor, Tensor] | None:
        """The values of an item and view that were found before, and of which samples; None where they are not held."""
        if not self.fixed or view.startswith(ONCE):
            return None
        if (item, view) not in self._held:
            size = 4 * self.samples * prod(layout.shape)
            if size > _HELD_BYTES - sum(values.nbytes for values, _ in self._held.values()):
                return None
            self._held[item, view] = (
                torch.zeros(self.samples, *layout.shape),
                torch.zeros(self.samples, dtype=torch.bool),
            )
        return self._held[item, view]

    def _shards_of(self, item: str, view: str) -> Shards | None:
        """The files of an item and view; None where nobody has kept the item."""
        if (item, view) not in self._shards:
            layout = self._layouts.get(item) or _read_layout(self._layout_file(item))
            if layout is None:
                return None
            self._layouts[item] = layout
            self._shards[item, view] = Shards(self.folder / f"{quote(item)}.{quote(view)}", layout, self.samples)
        return self._shards[item, view]

    def _make(self, item: str, layout: Layout) -> None:
        """See to it that the folder is there and says how the item is written."""
        if self._layouts.get(item) == layout:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for file, content in (
            (self.folder / "about.json", self._about),
            (self._layout_file(item), layout.to_json()),
        ):
            partial = file.with_name(f".{file.name}.{os.getpid()}.tmp")
            partial.write_text(json.dumps(content, indent=2, default=str))
            partial.replace(file)
        self._layouts[item] = layout
        self._shards = {key: shards for key, shards in self._shards.items() if key[0] != item}
        self._held = {key: held for key, held in self._held.items() if key[0] != item}

    def _layout_file(self, item: str) -> Path:
        return self.folder / f"{quote(item)}.layout.json"


def identity_of(teacher: Teacher, **more: Any) -> dict[str, Any]:
    """What a teacher's answers depend on, but for the pixels.

    Args:
        teacher: its weights, how it is asked, and in which chunks.
        more: further facts: how it answers, the data set.
    """
    network = teacher.network
    digest = hashlib.sha256(repr(network).encode())
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    device = next((tensor.device.type for tensor in network.parameters()), "cpu")
    return {
        "teacher": digest.hexdigest(),
        "preprocess": repr(teacher.preprocess),
        "chunk": teacher.chunk,
        "columns": None if teacher.columns is None else teacher.columns.tolist(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **more,
    }


def _by_view(places: Sequence[Place]) -> dict[str, Tensor | slice]:
    """For each view, which images of a batch are seen in it."""
    if len({place.view for place in places}) == 1:
        return {places[0].view: slice(None)}
    found: dict[str, list[Tensor]] = {}
    start = 0
    for place in places:
        found.setdefault(place.view, []).append(torch.arange(start, start + len(place.ids)))
        start += len(place.ids)
    return {view: torch.cat(positions) for view, positions in found.items()}


def _read_layout(path: Path) -> Layout | None:
    """A layout; None where there is none, or it cannot be read."""
    try:
        return Layout.from_json(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _of_tap(path: str) -> str:
    """The name of a tapped feature among what is kept: a module may be called `logits`."""
    return f"tap-{path}"
