"""A student and its teacher before training: both are tried on an example, and each objective is given its places."""

from typing import Any

import keras
import numpy as np

from understudy.distill.match import match
from understudy.errors import UserError
from understudy.keras.losses.kd import KerasLoss
from understudy.keras.objective import Objective
from understudy.keras.operations import ops
from understudy.keras.taps import find, shapes_at
from understudy.keras.teacher import Teacher, are_probabilities, logits_of

Tensor = Any
Paths = tuple[str, ...]


class Pair:
    """A student and its teacher, each run once on an example, so that what does not fit is found before training.

    Args:
        student: a `keras.Model`.
        teacher: whom it learns from; None where no objective needs one.
        example: an input batch, of which a few samples are taken; None makes one from the student's input shape.

    Raises:
        UserError: a model cannot take the example, or there is none.
    """

    def __init__(self, student: keras.Model, teacher: Teacher | None, example: Any) -> None:
        self.student = student
        self.teacher = teacher
        self.example = example_for(student, example)
        try:
            output = logits_of(student(self.example, training=False), "student")
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            shape = tuple(self.example.shape)
            raise UserError(f"the student '{student.name}' cannot take inputs of shape {shape}: {reason}") from error
        self.output_shape = tuple(output.shape)
        self.student_gives_probabilities = are_probabilities(output)
        self.teacher_shape = () if teacher is None else tuple(teacher.probe(self.example).shape)

    def place(self, objective: Objective) -> None:
        """Check that an objective can compare the two, and turn its taps into layer paths.

        Raises:
            UserError: it cannot, or a tap does not exist.
        """
        self._check(objective)
        if objective.student_tap is not None:
            objective.student_paths = find(self.student, objective.student_tap, self.example)
        if objective.teacher_tap is not None and self.teacher is not None and objective.needs_teacher:
            theirs = self.teacher.prepared(self.example)
            objective.teacher_paths = find(self.teacher.model, objective.teacher_tap, theirs)
        if objective.student_tap in ("auto", "last"):
            self._match(objective)

    def _check(self, objective: Objective) -> None:
        if objective.needs_teacher and self.teacher is None:
            raise UserError(f"'{objective.name}' compares with a teacher: give one")
        if objective.student_tap is not None or isinstance(objective.loss, KerasLoss):
            return
        if self.student_gives_probabilities:
            raise UserError(
                f"the student '{self.student.name}' returns probabilities: take the softmax out of its last layer, "
                f"'{objective.name}' wants logits"
            )
        if objective.needs_teacher and self.teacher_shape != self.output_shape:
            raise UserError(
                f"the teacher gives {self.teacher_shape[1:]}, the student {self.output_shape[1:]} outputs a sample: "
                "they must be the same classes; give both the same, or compare features by student_tap="
            )

    def _match(self, objective: Objective) -> None:
        """Pair the ends of stages by resolution or depth, where both sides are open."""
        own = shapes_to_match(self.student, objective.student_paths, self.example)
        other = own
        open_too = objective.teacher_tap in ("auto", "last")
        if open_too and self.teacher is not None:
            theirs = self.teacher.prepared(self.example)
            other = shapes_to_match(self.teacher.model, objective.teacher_paths, theirs)
        students, teachers = match(own, other)
        if not students:
            raise UserError(f"'{objective.name}': no feature maps or tokens found to compare: name the taps")
        first = -1 if objective.student_tap == "last" else 0
        objective.student_paths = students[first:]
        if open_too and self.teacher is not None:
            objective.teacher_paths = teachers[first:]


def example_for(student: keras.Model, given: Any) -> Tensor:
    """A small batch to try the models on."""
    if given is not None:
        return ops.convert_to_tensor(given[:4] if hasattr(given, "__getitem__") else given)
    inputs = getattr(student, "inputs", None)
    if not inputs:
        raise UserError(
            f"the student '{student.name}' has no input shape yet: give example=x[:4], or build it as a Functional or "
            "Sequential model with a keras.Input"
        )
    if len(inputs) > 1:
        raise UserError(f"the student '{student.name}' has {len(inputs)} inputs: one is supported")
    shape = inputs[0].shape[1:]
    if None in shape:
        raise UserError(f"the student '{student.name}' takes inputs of any size {shape}: give example=x[:4]")
    if "int" in inputs[0].dtype:
        return ops.zeros((4, *shape), dtype=inputs[0].dtype)
    random = np.random.default_rng(0).random((4, *shape))
    return ops.convert_to_tensor(random.astype("float32"))


def shapes_to_match(model: keras.Model, paths: Paths, example: Tensor) -> dict[str, tuple[int, ...]]:
    """Shapes (N, C, H, W) or (N, L, D) of what is tapped, as the matching wants them."""
    found = shapes_at(model, paths, example)
    if keras.config.image_data_format() == "channels_first":
        return {path: found[path] for path in paths}
    shapes = {path: found[path] for path in paths}
    return {path: (s[0], s[3], s[1], s[2]) if len(s) == 4 else s for path, s in shapes.items()}
