"""Keras reads its backend once a process: torch here, which every installation has, unless the environment says."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Threads and devices of the other backends would only get in each other's way on tiny models.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")


# What Keras and its backends warn of by themselves.
_THEIRS = (
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
    "ignore:`shuffle=True` was passed:UserWarning",
    "ignore::DeprecationWarning:(keras|tensorflow|jax|flatbuffers|google|torch)",
)


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for filtered in _THEIRS:
                item.add_marker(pytest.mark.filterwarnings(filtered))
