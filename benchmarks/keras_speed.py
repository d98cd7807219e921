"""Seconds a step of understudy's Keras Distiller against Keras' own and against the article's, in one run.

    KERAS_BACKEND=jax python benchmarks/keras_speed.py

Without a feature loss the models are the article's; with one, student and teacher are of one size and the student has
dropout, as students that are worth a feature loss do (without it, a compiler may notice that Keras runs the student
twice on the same numbers). Both sides have the same models, batch and optimiser and compare the same two layers by
their mean squared error; the contestants take turns, and what is reported is the median ratio of a round.
"""

import argparse
import statistics
import time

import keras
import numpy as np
from keras import layers, ops

from common import describe_machine, keras_software, record
from understudy.keras import Distiller, Objective
from understudy.keras.losses import KD, CrossEntropy, FeatureRegression


class ArticleDistiller(keras.Model):
    """The article's: the loss in `compute_loss`, the teacher among the trained weights."""

    def __init__(self, student, teacher):
        super().__init__()
        self.student, self.teacher = student, teacher

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        teacher = ops.softmax(self.teacher(x, training=False) / 10, axis=1)
        soft = keras.losses.KLDivergence()(teacher, ops.softmax(y_pred / 10, axis=1)) * 100
        return 0.1 * keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y, y_pred) + 0.9 * soft

    def call(self, x):
        return self.student(x)


def network(widths, *, dropout=0.0):
    first, second = widths
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            *([layers.Dropout(dropout)] if dropout else []),
            layers.Conv2D(first, 3, strides=2, padding="same"),
            layers.LeakyReLU(negative_slope=0.2),
            layers.MaxPooling2D(2, strides=1, padding="same"),
            layers.Conv2D(second, 3, strides=2, padding="same"),
            layers.Flatten(),
            layers.Dense(64, name="embedding"),
            layers.Dense(10),
        ]
    )


def contestants(teacher, student, equals):
    """Distillers by name, compiled, each with models of its own."""
    labels = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    ours = [Objective(CrossEntropy(), 0.1), Objective(KD(temperature=10), 0.9)]
    feature = Objective(FeatureRegression(), 0.9, student_tap="embedding", teacher_tap="embedding")
    kd = keras.distillation.LogitsDistillation(temperature=10.0, loss=keras.losses.KLDivergence())
    mse = keras.distillation.FeatureDistillation("mse", "embedding", "embedding")
    made = {
        "ours": Distiller(student=network(student), teacher=network(teacher), objectives=ours),
        "keras": keras.distillation.Distiller(network(teacher), network(student), kd, student_loss_weight=0.1),
        "article": ArticleDistiller(network(student), network(teacher)),
        "ours, feature loss": Distiller(
            student=network(equals, dropout=0.1),
            teacher=network(equals),
            objectives=[Objective(CrossEntropy(), 0.1), Objective(KD(temperature=10), 0.9), feature],
        ),
        "keras, feature loss": keras.distillation.Distiller(
            network(equals), network(equals, dropout=0.1), [kd, mse], student_loss_weight=0.1
        ),
    }
    for name, distiller in made.items():
        # The article's model keeps its loss in compute_loss; Keras' wants it at compile.
        loss = {"loss": labels} if name.startswith("keras") else {}
        distiller.compile(optimizer=keras.optimizers.Adam(), **loss)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--teacher", type=int, nargs=2, default=(256, 512))
    parser.add_argument("--student", type=int, nargs=2, default=(16, 32))
    parser.add_argument("--equals", type=int, nargs=2, default=(64, 64), help="both models with a feature loss")
    parser.add_argument("--no-record", action="store_true", help="leave RESULTS.md as it is")
    arguments = parser.parse_args()
    random = np.random.default_rng(0)
    x = random.random((arguments.steps * arguments.batch, 28, 28, 1)).astype("float32")
    y = random.integers(0, 10, len(x))
    made = contestants(tuple(arguments.teacher), tuple(arguments.student), tuple(arguments.equals))
    for distiller in made.values():  # compiles
        distiller.fit(x[: 2 * arguments.batch], y[: 2 * arguments.batch], batch_size=arguments.batch, verbose=0)
    seconds = {name: [] for name in made}
    for _ in range(arguments.rounds):
        for name, distiller in made.items():
            began = time.perf_counter()
            distiller.fit(x, y, batch_size=arguments.batch, verbose=0)
            seconds[name].append((time.perf_counter() - began) / arguments.steps)
    steps = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"{theirs} / {ours}": statistics.median(
            other / own for other, own in zip(seconds[theirs], seconds[ours], strict=True)
        )
        for theirs, ours in (("keras", "ours"), ("article", "ours"), ("keras, feature loss", "ours, feature loss"))
    }
    rows = [
        f"teacher {tuple(arguments.teacher)} and student {tuple(arguments.student)}, with a feature loss both "
        f"{tuple(arguments.equals)}; batch {arguments.batch}; {arguments.rounds} rounds of {arguments.steps} steps",
        "",
        "| contestant | ms a step |",
        "|---|---|",
        *(f"| {name} | {1000 * value:.2f} |" for name, value in steps.items()),
        "",
        "; ".join(f"{name}: {value:.2f}" for name, value in ratios.items()),
    ]
    print("\n".join(rows))
    if not arguments.no_record:
        record(f"keras_speed_{keras.backend.backend()}", "\n".join(rows), describe_machine(keras_software()))


if __name__ == "__main__":
    main()
