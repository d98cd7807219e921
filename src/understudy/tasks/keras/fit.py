"""Keras' fit as a run uses it: the same batches for all students of a seed, scores by epoch, stops and infinities."""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from understudy.errors import RunError
from understudy.keras import Distiller
from understudy.keras.operations import ops
from understudy.tasks.keras.data import Part, Parts
from understudy.tasks.keras.recipe import KerasTrain
from understudy.train.folder import Log
from understudy.train.guard import StopRequest
from understudy.train.progress import Display

_AT_ONCE = 256


class Batches(keras.utils.PyDataset):
    """Arrays in an order that depends on the seed and the epoch alone, not on the backend or on who trains.

    Args:
        part: the arrays.
        batch_size: samples a step; the last step of an epoch may have fewer.
        seed: of the order.
    """

    def __init__(self, part: Part, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.part = part
        self.batch_size = batch_size
        self.seed = seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the order of an epoch; told by a callback, because Keras' own hooks run once more on some backends."""
        self.order = np.random.default_rng([self.seed, epoch]).permutation(len(self.part.x))

    def __len__(self) -> int:
        return -(-len(self.part.x) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        assert self.part.y is not None
        return self.part.x[rows], self.part.y[rows]


class _Watch(keras.callbacks.Callback):
    """Writes what an epoch came to, shows progress, and ends at a signal or an infinite loss."""

    def __init__(
        self, parts: Parts, source: Any, folder: Path, name: str, epochs: int, display: Display, stop: StopRequest
    ) -> None:
        super().__init__()
        self.parts, self.source = parts, source
        self.logs, self.timing = Log(folder / "metrics.jsonl"), Log(folder / "timing.jsonl")
        # A stage is done whole or started over: Keras' state is not resumed inside one.
        for log in (self.logs, self.timing):
            log.path.unlink(missing_ok=True)
        self.name, self.display, self.stop = name, display, stop
        self.epochs = epochs
        self.meter: Any = None
        self.steps = 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if isinstance(self.source, Batches):
            self.source.start(epoch)
        if self.meter is None:
            total = self.epochs * int((self.params or {}).get("steps") or 0)
            self.meter = self.display.begin(self.name, total, 0)
        self.began = time.perf_counter()
        self.first = self.steps

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps += 1
        self.meter.advance()
        self.stop.raise_if_asked(
            f"finished models are kept, {self.name} begins anew: continue with `understudy resume FOLDER`"
        )

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.perf_counter() - self.began
        losses = {name: float(value) for name, value in (logs or {}).items()}
        total = losses.pop("loss")
        if not math.isfinite(total):
            raise RunError(f"{self.name}: the loss is {total} in epoch {epoch + 1}; {losses}")
        self.logs.write(kind="train", epoch=epoch + 1, step=self.steps, loss=total, losses=losses)
        assert self.model is not None
        student = self.model.student if isinstance(self.model, Distiller) else self.model
        parts = {"validation": self.parts.validation, "test": self.parts.test}
        scores = {
            use: {"accuracy": accuracy(student.predict_on_batch, part)}
            for use, part in parts.items()
            if part is not None
        }
        self.logs.write(kind="eval", epoch=epoch + 1, step=self.steps, **scores)
        steps = max(self.steps - self.first, 1)
        self.timing.write(epoch=epoch + 1, seconds=round(seconds, 4), steps_per_second=round(steps / seconds, 2))
        self.meter.note = f"{scores['test']['accuracy']:.4f}"

    def on_train_end(self, logs: Any = None) -> None:
        self.meter.finish(self.steps)


def train(
    model: keras.Model,
    settings: KerasTrain,
    parts: Parts,
    folder: Path,
    *,
    seed: int,
    name: str,
    display: Display,
    stop: StopRequest,
) -> None:
    """Train a model alone, or a student by its Distiller.

    Args:
        model: with logits as output, or a Distiller.
        settings: how.
        parts: the data.
        folder: where the epochs' metrics go.
        seed: of the order of samples, and of dropout.
        name: shown with the progress.
        display: shows it.
        stop: asks for the end.

    Raises:
        RunError: the loss became infinite.
        Interrupted: a signal came.
    """
    compile_model(model, settings, parts)
    keras.utils.set_random_seed(seed)
    source = _batches(parts.train, settings, seed)
    watch = _Watch(parts, source, folder, name, settings.epochs, display, stop)
    # `source` orders its samples itself; a data set given in Python does so too.
    model.fit(source, epochs=settings.epochs, verbose=0, callbacks=[watch], shuffle=False)  # pyright: ignore[reportArgumentType]


def compile_model(model: keras.Model, settings: KerasTrain, parts: Parts) -> None:
    """Give a model its optimiser; one that is no Distiller learns from the labels alone."""
    options: dict[str, Any] = {"jit_compile": settings.compile}
    if not isinstance(model, Distiller):
        options["loss"] = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=_optimizer(settings, parts), **options)


def seconds_a_step(model: keras.Model, settings: KerasTrain, parts: Parts, *, steps: int = 5) -> float:
    """Train on a few batches, the first of which compiles, and say how long one takes."""
    compile_model(model, settings, parts)
    source = iter(_batches(parts.train, settings, 0))
    model.train_on_batch(*next(source)[:2])
    began, done = time.perf_counter(), 0
    for batch, _ in zip(source, range(steps), strict=False):
        model.train_on_batch(*batch[:2])
        done += 1
    return (time.perf_counter() - began) / max(done, 1)


def accuracy(ask: Callable[[Any], Any], part: Part) -> float:
    """The share of samples whose largest logit is the label's."""
    right = count = 0
    for x, y in batches(part):
        answers = np.asarray(ops.convert_to_numpy(ask(x))).argmax(-1)
        right, count = right + int((answers == y).sum()), count + len(y)
    return right / count


def batches(part: Part) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Samples in their order, as NumPy arrays, some hundred at once."""
    if part.y is not None:
        for start in range(0, len(part.x), _AT_ONCE):
            yield part.x[start : start + _AT_ONCE], part.y[start : start + _AT_ONCE]
        return
    for index, batch in enumerate(part.x):
        if index == getattr(part.x, "num_batches", None):  # a PyDataset is indexed without end
            return
        x, y = (np.asarray(ops.convert_to_numpy(each)) for each in batch[:2])
        yield x, y.reshape(len(y), -1)[:, 0] if y.ndim > 1 else y


def _batches(part: Part, settings: KerasTrain, seed: int) -> Any:
    return Batches(part, batch_size=settings.batch_size, seed=seed) if part.is_arrays else part.x


def _optimizer(settings: KerasTrain, parts: Parts) -> keras.optimizers.Optimizer:
    rate: Any = settings.lr
    if settings.schedule == "cosine":
        length = len(parts.train.x)
        steps = (-(-length // settings.batch_size) if parts.train.is_arrays else length) * settings.epochs
        rate = keras.optimizers.schedules.CosineDecay(settings.lr, steps)
    shared: dict[str, Any] = {"global_clipnorm": settings.clip}
    if settings.weight_decay or settings.optimizer == "adamw":
        shared["weight_decay"] = settings.weight_decay
    if settings.optimizer == "sgd":
        return keras.optimizers.SGD(rate, momentum=settings.momentum, **shared)
    return (keras.optimizers.AdamW if settings.optimizer == "adamw" else keras.optimizers.Adam)(rate, **shared)
