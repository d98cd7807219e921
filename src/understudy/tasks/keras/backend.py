"""The backend and the precision that a Keras recipe runs with, chosen before Keras is imported."""

import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from understudy.errors import UserError
from understudy.recipe.schema import Machine
from understudy.tasks.keras.recipe import KerasTrain


@contextmanager
def machine(wanted: Machine) -> Iterator[dict[str, Any]]:
    """Choose the backend before Keras is imported, and the precision inside the block.

    Raises:
        UserError: Keras is missing, or was imported on another backend already.
    """
    assert isinstance(wanted, KerasTrain)
    if importlib.util.find_spec("keras") is None:
        raise UserError("this recipe needs Keras: pip install 'understudy[keras]'")
    if "keras" not in sys.modules:
        if wanted.backend == "auto":
            _torch_if_the_usual_one_is_missing()
        else:
            os.environ["KERAS_BACKEND"] = wanted.backend
    import keras

    found = keras.backend.backend()
    if wanted.backend not in ("auto", found):
        raise UserError(
            f"Keras runs on {found} in this process already: set KERAS_BACKEND={wanted.backend} before it is imported",
            where="train.backend",
        )
    before = keras.config.dtype_policy()
    names = {"fp32": "float32", "bf16": "mixed_bfloat16", "fp16": "mixed_float16"}
    keras.config.set_dtype_policy(names[wanted.precision])
    try:
        yield {"keras": keras.version(), "backend": found}
    finally:
        keras.config.set_dtype_policy(before)


def _torch_if_the_usual_one_is_missing() -> None:
    """Keras takes TensorFlow where nothing is set, installed or not; torch is there wherever understudy is."""
    if "KERAS_BACKEND" in os.environ:
        return
    settings = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "keras.json"
    try:
        usual = json.loads(settings.read_text()).get("backend", "tensorflow")
    except (OSError, ValueError):
        usual = "tensorflow"
    if importlib.util.find_spec(usual) is None:
        os.environ["KERAS_BACKEND"] = "torch"
