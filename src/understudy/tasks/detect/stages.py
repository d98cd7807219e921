"""The stages of a compression, each a function from weights to weights."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from understudy.errors import RunError, UserError, did_you_mean
from understudy.tasks.detect.channels import prunable_scales
from understudy.tasks.detect.guest import YOLO, BaseTrainer, argument_names, get_cfg, open_yolo
from understudy.tasks.detect.methods import Method
from understudy.tasks.detect.prune import Pruned, Pruning, prune
from understudy.tasks.detect.sparse import Sparsity, histogram
from understudy.tasks.detect.trainers import distill_trainer, keep_widths_trainer, sparse_trainer

# In the warm-up ultralytics gives biases a learning rate of 0.1, which suits SGD; `auto` sets it to zero for Adam, too.
_ADAMW: Mapping[str, Any] = {"optimizer": "AdamW", "warmup_bias_lr": 0.0}

Arguments = Mapping[str, Any]
Watch = Mapping[str, Callable[[Any], None]]


@dataclass(frozen=True)
class Place:
    """Where a training writes.

    Args:
        folder: of its logs, plots and checkpoints.
        weights: the file that it leaves.
    """

    folder: Path
    weights: Path

    @property
    def last(self) -> Path:
        """The checkpoint of the last finished epoch."""
        return self.folder / "weights" / "last.pt"


def train(
    weights: str | Path,
    place: Place,
    arguments: Arguments,
    *,
    trainer: type[BaseTrainer] | None = None,
    keep: str = "best",
    resume: bool = False,
    only_finish: bool = False,
    watch: Watch | None = None,
    trust_pickle: bool = False,
) -> YOLO:
    """Train by ultralytics' own trainer; a pruned network keeps its widths.

    Args:
        weights: to start from, or an architecture such as `yolov8n.yaml`.
        place: where to write.
        arguments: ultralytics' own, `data` and `epochs` among them.
        trainer: one of ours; by default the one that keeps widths.
        keep: which weights are left, those of the `best` epoch on the validation data or of the `last`.
        resume: go on from the folder's last checkpoint.
        only_finish: every epoch was trained before; only the end was missing.
        watch: what ultralytics calls with the trainer, by its names of the moments.
        trust_pickle: read weights that hold other classes than ultralytics'.

    Raises:
        UserError: weights, data or an argument are wrong.
        RunError: ultralytics left no weights.
    """
    if only_finish:
        return _leave(place, keep)
    if resume:
        return _finish(YOLO(str(place.last)), place, {"resume": str(place.last)}, trainer, keep, watch)
    yolo = open_yolo(weights, trust_pickle=trust_pickle)
    settings = training_arguments(arguments)
    settings |= {"project": str(place.folder.parent.resolve()), "name": place.folder.name, "exist_ok": True}
    return _finish(yolo, place, settings, trainer, keep, watch)


def _finish(
    yolo: YOLO, place: Place, settings: Arguments, trainer: type[BaseTrainer] | None, keep: str, watch: Watch | None
) -> YOLO:
    for moment, call in (watch or {}).items():
        yolo.add_callback(moment, call)
    try:
        yolo.train(trainer=trainer or keep_widths_trainer(str(yolo.task)), **settings)
    except ValueError as error:
        if "Invalid CUDA" not in str(error):
            raise
        count = torch.cuda.device_count()
        raise UserError(f"there is no such device: this machine has {count} GPUs, and cpu",
                        where=f"device={settings.get('device')}") from None  # fmt: skip
    return _leave(place, keep)


def _leave(place: Place, keep: str) -> YOLO:
    found = place.folder / "weights" / f"{keep}.pt"
    if not found.exists():
        raise RunError(f"{place.folder}: ultralytics left no {keep}.pt")
    place.weights.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(found, place.weights)
    return open_yolo(place.weights)


def sparsify(
    weights: str | Path,
    place: Place,
    arguments: Arguments,
    sparsity: Sparsity,
    *,
    resume: bool = False,
    only_finish: bool = False,
    watch: Watch | None = None,
    trust_pickle: bool = False,
) -> dict[str, Any]:
    """Train on with an L1 penalty on the BatchNorm scales of prunable channels; leaves the last epoch's weights.

    The optimiser is AdamW at 0.001 unless said otherwise: a strength is a share of its steps.

    Returns:
        How the scales are spread, `before` and `after`.
    """
    start = open_yolo(weights, trust_pickle=trust_pickle)
    names = prunable_scales(network(start))
    before = histogram(network(start), names)
    trainer = sparse_trainer(sparsity, task=str(start.task))
    settings = {**_ADAMW, "lr0": 1e-3, **arguments}
    done = train(weights, place, settings, trainer=trainer, keep="last", resume=resume,
                 only_finish=only_finish, watch=watch, trust_pickle=trust_pickle)  # fmt: skip
    return {"before": before, "after": histogram(network(done), names)}


def prune_weights(weights: str | Path, to: Path, pruning: Pruning, *, trust_pickle: bool = False) -> Pruned:
    """Prune and save.

    Args:
        weights: of a trained model.
        to: the file to write; plain `YOLO()` opens it.
        pruning: how much, and where.
        trust_pickle: read weights that hold other classes than ultralytics'.
    """
    yolo = open_yolo(weights, trust_pickle=trust_pickle)
    done = prune(network(yolo), pruning)
    save(done.model, to, yolo)
    return done


def distill(
    weights: str | Path,
    teacher: str | Path,
    method: Method,
    place: Place,
    arguments: Arguments,
    *,
    unlabelled: str | None = None,
    unlabelled_batch: int | None = None,
    resume: bool = False,
    only_finish: bool = False,
    watch: Watch | None = None,
    trust_pickle: bool = False,
) -> YOLO:
    """Train a student with a teacher beside it; ultralytics' own way of it where the method is `native`."""
    if method.is_native:
        if unlabelled is not None:
            raise UserError("native compares labelled images only: take another method for frames without labels")
        settings = {**arguments, "distill_model": str(teacher), "dis": float(method.objectives[0]["weight"])}
        return train(weights, place, settings, resume=resume, only_finish=only_finish, watch=watch,
                     trust_pickle=trust_pickle)  # fmt: skip
    task = str(open_yolo(weights, trust_pickle=trust_pickle).task)
    trainer = distill_trainer(teacher, method, task=task, unlabelled=unlabelled, unlabelled_batch=unlabelled_batch,
                              trust_pickle=trust_pickle)  # fmt: skip
    return train(weights, place, arguments, trainer=trainer, resume=resume, only_finish=only_finish, watch=watch,
                 trust_pickle=trust_pickle)  # fmt: skip


def save(model: nn.Module, path: Path, origin: YOLO) -> None:
    """Write a network as ultralytics writes its own, in half precision and with stock classes alone.

    Args:
        model: the network.
        path: of the file.
        origin: what it was made from, whose training arguments are kept.
    """
    from ultralytics import __version__

    kept = cast(Any, model)
    kept.args = dict(cast(Any, origin.model).args)
    checkpoint = {
        "epoch": -1,
        "model": kept.half(),
        "ema": None,
        "optimizer": None,
        "train_args": kept.args,
        "version": __version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(checkpoint, path)
    kept.float()


def network(yolo: YOLO) -> nn.Module:
    """The network of an open model.

    Raises:
        UserError: it is an exported file.
    """
    if not isinstance(yolo.model, nn.Module):
        raise UserError("is an exported file, which cannot be trained or pruned: give its .pt", where=yolo.model)
    return yolo.model


def training_arguments(arguments: Arguments) -> dict[str, Any]:
    """Arguments of ultralytics, checked before anything is written.

    Raises:
        UserError: an argument that ultralytics does not know, or a value that it does not take.
    """
    known = argument_names()
    if unknown := [name for name in arguments if name not in known]:
        raise UserError(f"unknown argument '{unknown[0]}', {did_you_mean(unknown[0], known)}")
    settings = dict(arguments)
    if "lr0" in settings and settings.get("optimizer", "auto") == "auto":
        # `auto` chooses a learning rate of its own and says nothing of yours.
        settings = {**_ADAMW, **settings, "optimizer": "AdamW"}
    try:
        get_cfg(overrides={key: value for key, value in settings.items() if key != "data"})
    except (TypeError, ValueError, SyntaxError) as error:
        raise UserError(str(error).strip().splitlines()[0]) from None
    return settings
