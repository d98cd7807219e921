"""What every loss of the Keras front is: a layer without an output layer, which Keras' own Distiller takes too."""

import inspect
from typing import Any

import keras


class Loss(keras.layers.Layer, keras.distillation.DistillationLoss):
    """A loss between what a student and a teacher gave: `loss(student, teacher, labels=..., sample_weight=...)`.

    It is a layer, so that weights of its own are trained, saved and found on each backend; it computes in float32 at
    least, whatever the models' policy. Names, options and formulas are those of `understudy.losses`; classes are the
    last axis and maps follow Keras' `image_data_format` here.

    In `keras.distillation.Distiller` it goes where Keras' own distillation losses do, unless it needs labels, which
    that Distiller has none of.

    A loss says in its `call(student, teacher, *, labels, sample_weight=None)` what it takes: `teacher` unless it has
    none, `labels` where it needs them, `sample_weight` where it is a mean over samples.

    Args:
        student_layer_name: for Keras' own Distiller, the student's layer to compare; None compares the outputs.
        teacher_layer_name: likewise of the teacher.
        name: of the layer.
        dtype: of its weights and least precision.
    """

    def __init__(
        self,
        *,
        student_layer_name: str | None = None,
        teacher_layer_name: str | None = None,
        name: str | None = None,
        dtype: Any = "float32",
        trainable: bool = True,
    ) -> None:
        super().__init__(name=name, dtype=dtype, trainable=trainable, autocast=False)
        self.supports_masking = True
        self.student_layer_name = student_layer_name
        self.teacher_layer_name = teacher_layer_name
        self.built = not self.has_weights()

    def compute_mask(self, inputs: Any, previous_mask: Any) -> None:
        """A scalar has no mask."""

    def compute_output_shape(self, *shapes: Any, **named: Any) -> tuple[int, ...]:
        """A scalar's."""
        return ()

    @classmethod
    def options(cls) -> dict[str, inspect.Parameter]:
        """The loss's own options by name, as its constructor lists them."""
        parameters = inspect.signature(cls.__init__).parameters
        shared = inspect.signature(Loss.__init__).parameters
        return {
            name: each
            for name, each in parameters.items()
            if each.kind is inspect.Parameter.KEYWORD_ONLY and name not in shared
        }

    @classmethod
    def needs(cls) -> tuple[str, ...]:
        """What it must be given with the two sides, such as labels."""
        parameters = inspect.signature(cls.call).parameters.values()
        return tuple(
            each.name
            for each in parameters
            if each.kind is inspect.Parameter.KEYWORD_ONLY and each.default is inspect.Parameter.empty
        )

    @classmethod
    def takes(cls, signal: str) -> bool:
        """Whether a signal, such as `sample_weight`, means something to it."""
        return signal in inspect.signature(cls.call).parameters

    @classmethod
    def has_weights(cls) -> bool:
        """Whether it has weights of its own, made from the shapes of what it compares."""
        return cls.build is not keras.layers.Layer.build

    def get_config(self) -> dict[str, Any]:
        """What makes another of the same settings."""
        layer = {name: super(Loss, self).get_config()[name] for name in ("name", "dtype", "trainable")}
        places = {"student_layer_name": self.student_layer_name, "teacher_layer_name": self.teacher_layer_name}
        return {**layer, **places, **{name: getattr(self, name) for name in self.options()}}

    # What Keras' own Distiller calls

    def compute_loss(self, teacher_outputs: Any, student_outputs: Any, **unused: Any) -> Any:
        """The loss, as `keras.distillation.Distiller` asks for it."""
        training = {"training": True} if self.takes("training") else {}
        return self(student_outputs, teacher_outputs, **training)

    def validate_model_compatibility(self, teacher: Any, student: Any) -> None:
        """Check the layers' names, and make the loss's own weights from the layers' shapes.

        Raises:
            ValueError: the loss needs what that Distiller does not hand on, or a layer does not exist.
        """
        if self.needs():
            raise ValueError(
                f"{type(self).__name__} needs {' and '.join(self.needs())}, which keras.distillation.Distiller does "
                "not pass on: use understudy.keras.Distiller"
            )
        shapes = []
        for model, layer in ((student, self.student_layer_name), (teacher, self.teacher_layer_name)):
            if getattr(model, "inputs", None) is None:
                if layer is None and not self.has_weights():
                    return
                raise ValueError(
                    f"{model.name} is subclassed, so that its layers have no known outputs: use "
                    "understudy.keras.Distiller, which taps it all the same"
                )
            output = model.outputs[0] if layer is None else model.get_layer(layer).output
            shapes.append(tuple(output.shape))
        if self.has_weights() and not self.built:
            self.build(*shapes)
