"""The teacher: frozen, in inference mode, with an input and an output of its own made fit."""

from collections.abc import Callable, Iterable
from typing import Any

import keras
import numpy as np

from understudy.errors import UserError
from understudy.keras.operations import ops
from understudy.keras.taps import Tapped

Tensor = Any


class Teacher:
    """A frozen model that answers batches in inference mode, without gradient.

    Its weights stop being trainable. A final softmax is noticed from its first answer: logarithms of the probabilities
    are then taken as logits. Where its input is a fixed size other than the student's images, they are resized.

    Args:
        model: a `keras.Model`, such as one of `keras.applications`.
        preprocess: from the student's inputs to the teacher's, made of operations that Keras can trace, such as
            `keras.applications.resnet.preprocess_input`; None hands them on as they come.
    """

    def __init__(self, model: keras.Model, *, preprocess: Callable[[Tensor], Tensor] | None = None) -> None:
        if not isinstance(model, keras.Model):
            raise UserError(f"the teacher is a {type(model).__name__}: give a keras.Model")
        self.model = model
        self.preprocess = preprocess
        self.gives_probabilities = False
        self._runs: dict[tuple[tuple[str, ...], bool], Tapped] = {}
        model.trainable = False

    def __call__(
        self, inputs: Tensor, *, taps: Iterable[str] = (), logits: bool = True
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Answer a batch.

        Args:
            inputs: as the student gets them.
            taps: layer paths whose outputs are wanted too.
            logits: whether the logits are wanted.

        Returns:
            The logits (None where they are not wanted), and the features by path.
        """
        wanted = tuple(taps), logits
        if wanted not in self._runs:
            self._runs[wanted] = Tapped(self.model, wanted[0], output=logits)
        output, features = self._runs[wanted](self.prepared(inputs), training=False)
        features = {path: ops.stop_gradient(feature) for path, feature in features.items()}
        if output is None or not logits:
            return None, features
        output = ops.stop_gradient(logits_of(output, "teacher"))
        return self._as_logits(output) if self.gives_probabilities else output, features

    def prepared(self, inputs: Tensor) -> Tensor:
        """Inputs as the teacher takes them."""
        if self.preprocess is not None:
            inputs = self.preprocess(inputs)
        own = getattr(self.model, "input_shape", None)
        if not isinstance(own, tuple) or len(own) != 4 or len(inputs.shape) != 4:
            return inputs
        axes = (2, 3) if keras.config.image_data_format() == "channels_first" else (1, 2)
        size = tuple(own[axis] for axis in axes)
        if None in size or size == tuple(inputs.shape[axis] for axis in axes):
            return inputs
        return ops.image.resize(inputs, size, interpolation="bilinear", antialias=True)

    def probe(self, example: Tensor) -> Tensor:
        """Answer an example and notice whether the answers are probabilities.

        Raises:
            UserError: the teacher cannot take it.
        """
        try:
            output, _ = self(example)
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"the teacher '{self.model.name}' cannot take inputs of shape {tuple(example.shape)}: give "
                f"preprocess=, a function from the student's inputs to the teacher's ({reason})"
            ) from error
        self.gives_probabilities = are_probabilities(output)
        return self._as_logits(output) if self.gives_probabilities else output

    def _as_logits(self, probabilities: Tensor) -> Tensor:
        dtype = keras.backend.standardize_dtype(probabilities.dtype)
        wide = "float32" if dtype in ("float16", "bfloat16") else dtype
        return ops.log(ops.maximum(ops.cast(probabilities, wide), float(np.finfo(wide).tiny)))


def are_probabilities(outputs: Tensor) -> bool:
    """Whether every row of a batch of outputs (N, ..., K) lies in [0, 1] and sums to one."""
    rows: np.ndarray = ops.convert_to_numpy(ops.cast(outputs, "float32"))
    if rows.ndim < 2 or rows.shape[-1] < 2:
        return False
    in_range = bool((rows >= 0).all() and (rows <= 1).all())
    return in_range and bool(np.allclose(rows.sum(-1), 1, atol=1e-3))


def logits_of(output: Any, whose: str) -> Tensor:
    """Find the logits in what a model returns: itself, the first of a tuple, or `logits` of a mapping.

    Raises:
        UserError: no tensor stands at that place.
    """
    if hasattr(output, "shape"):
        return output
    if isinstance(output, dict) and "logits" in output:
        return output["logits"]
    if isinstance(output, (tuple, list)) and output and hasattr(output[0], "shape"):
        return output[0]
    raise UserError(f"the {whose} returns a {type(output).__name__}: wanted logits as a tensor, first of a tuple, or "
                    "under 'logits'")  # fmt: skip
