"""The networks of a run, listed and sampled."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from understudy.errors import UserError, did_you_mean
from understudy.report.format import counted
from understudy.tasks.diffusion.draw import balanced, draw, forwards
from understudy.tasks.diffusion.quality import pixels
from understudy.tasks.diffusion.steps import SAMPLERS, Sampler
from understudy.tasks.diffusion.store import CARD, Card, load_network, read_card
from understudy.train.folder import RunFolder
from understudy.train.progress import Display

# Images drawn before they are turned to bytes: what is held in memory as numbers.
_BLOCK = 1000


@dataclass(frozen=True)
class Saved:
    """A network of a run.

    Args:
        name: of its arm, such as `student_4`.
        folder: where it is.
        card: what it knows about itself.
    """

    name: str
    folder: Path
    card: Card


def saved(run: Path, seed: int | None = None) -> list[Saved]:
    """The networks of a run (or the one network of a folder), those of most steps first.

    Args:
        run: a run folder, or the folder of a saved network.
        seed: of the run; by default its first.

    Raises:
        UserError: there are none.
    """
    if (run / CARD).is_file():
        return [Saved(run.name, run, read_card(run))]
    if not (run / "recipe.yaml").is_file():
        raise UserError("is no run folder, nor the folder of a saved diffusion model", where=run)
    recipe = RunFolder(run).recipe()
    wanted = recipe.seed if seed is None else seed
    homes = sorted(home.parent for home in run.glob(f"arms/*/seed-{wanted}/student/{CARD}"))
    if not homes:
        raise UserError(f"holds no diffusion model of seed {wanted} yet", where=run)
    found = [Saved(home.parent.parent.name, home, read_card(home)) for home in homes]
    if (run / "teacher" / CARD).is_file() and not any(one.name == "teacher" for one in found):
        found.append(Saved("teacher", run / "teacher", read_card(run / "teacher")))
    return sorted(found, key=lambda one: (-one.card.steps, one.name))


def choose(run: Path, *, steps: int | None = None, name: str | None = None, seed: int | None = None) -> Saved:
    """The network of a run that is meant.

    Args:
        run: a run folder, or the folder of a saved network.
        steps: it was distilled to; by default the fewest.
        name: of its arm.
        seed: of the run; by default its first.

    Raises:
        UserError: there is no such network, or several.
    """
    known = saved(run, seed)
    if name is not None:
        match = [one for one in known if one.name == name]
        if not match:
            raise UserError(f"has no model '{name}', {did_you_mean(name, [one.name for one in known])}", where=run)
        return match[0]
    if len(known) == 1:
        return known[0]
    wanted = known[-1].card.steps if steps is None else steps
    match = [one for one in known if one.card.steps == wanted]
    if not match:
        numbers = ", ".join(str(number) for number in sorted({one.card.steps for one in known}, reverse=True))
        raise UserError(
            f"has no model of {counted(wanted, 'step')} (it has {numbers}); for another number of steps of one of them "
            "name it with --model, see --list",
            where=run,
        )
    if len(match) > 1:
        names = ", ".join(one.name for one in match)
        raise UserError(f"has several models of {counted(wanted, 'step')} ({names}): name one with --model", where=run)
    return match[0]


def class_numbers(card: Card, words: Sequence[str] | None, count: int) -> Tensor | None:
    """The class of each image.

    Args:
        card: of the network.
        words: names or numbers of classes, taken in turn; None for all.
        count: how many images.

    Raises:
        UserError: no such class, or a model without classes.
    """
    if not card.classes:
        if words:
            raise UserError(
                "this model was trained without classes: it cannot draw one that is asked for", where="--classes"
            )
        return None
    if not words:
        return balanced(count, len(card.classes))
    numbers = []
    for word in words:
        if word in card.classes:
            numbers.append(card.classes.index(word))
        elif word.isdigit() and int(word) < len(card.classes):
            numbers.append(int(word))
        else:
            raise UserError(f"there is no class '{word}', {did_you_mean(word, card.classes)}", where="--classes")
    return torch.tensor(numbers)[torch.arange(count) % len(numbers)]


def sample_images(
    one: Saved,
    *,
    count: int,
    steps: int | None = None,
    classes: Sequence[str] | None = None,
    seed: int = 0,
    sampler: str | None = None,
    variance: float = 1.0,
    guidance: float | None = None,
    device: torch.device | str = "cpu",
    given: Any = None,
    display: Display | None = None,
) -> tuple[np.ndarray, np.ndarray | None]:
    """Draw images from a saved network.

    Args:
        one: the network.
        count: how many images.
        steps: by default those that it was distilled to.
        classes: names or numbers, taken in turn; by default all.
        seed: of the noise.
        sampler: `ddim`, `noisy` or `consistency`; by default the network's own.
        variance: of the noisy one.
        guidance: another strength, for a network that has learnt guidance.
        device: where to draw.
        given: for a network that was given in Python, the object.
        display: shows progress.

    Returns:
        (count, H, W, C) bytes, and the class numbers (count,) or None.

    Raises:
        UserError: no such class, sampler or strength.
    """
    if sampler is not None and sampler not in SAMPLERS:
        raise UserError(f"there is no sampler '{sampler}', {did_you_mean(sampler, SAMPLERS)}", where="--sampler")
    labels = class_numbers(one.card, classes, count)
    network = load_network(one.folder, given, guidance=guidance).to(device)
    steps = steps or one.card.steps
    way = cast(Sampler, sampler or one.card.sampler)
    blocks = [range(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
    meter = (display or Display(None)).begin("samples", sum(forwards(len(block), steps) for block in blocks), 0)
    parts = []
    for block in blocks:
        images = draw(
            network,
            process=one.card.process,
            shape=one.card.shape,
            count=len(block),
            steps=steps,
            labels=None if labels is None else labels[block.start : block.stop],
            seed=seed,
            first=block.start,
            sampler=way,
            variance=variance,
            device=device,
            advance=meter.advance,
        )
        parts.append(pixels(images).permute(0, 2, 3, 1).numpy())
    meter.finish(meter.total)
    return np.concatenate(parts), None if labels is None else labels.numpy()


def write_npz(path: Path, images: np.ndarray, labels: np.ndarray | None) -> None:
    """Write samples as the evaluator of ADM reads them: `arr_0` (N, H, W, 3) bytes, `arr_1` the class numbers.

    Reference: Dhariwal and Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021
    (https://github.com/openai/guided-diffusion/tree/main/evaluations).
    """
    images = np.broadcast_to(images, (*images.shape[:3], 3)) if images.shape[3] == 1 else images
    arrays = [images] if labels is None else [images, labels.astype(np.int64)]
    with path.open("wb") as file:  # given a name, NumPy would add its own suffix to it
        np.savez(file, *arrays)
