"""What all tests share: no network, no surprises from the machine, small recipes and data."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads that wait for each other make small models slow
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("YOLO_OFFLINE", "true")


def pytest_collection_modifyitems(items):
    """Tests marked `data` are skipped where the real data sets are not."""
    if os.environ.get("UNDERSTUDY_DATA"):
        return
    for item in items:
        if item.get_closest_marker("data"):
            item.add_marker(pytest.mark.skip(reason="UNDERSTUDY_DATA is not set"))


@pytest.fixture
def data_root() -> Path:
    return Path(os.environ["UNDERSTUDY_DATA"])


@pytest.fixture
def small_recipe() -> dict:
    """A recipe that runs in about two seconds, as plain data."""
    return {
        "name": "small",
        "data": {"name": "digits", "train": 240, "validation": 40},
        "teacher": {"name": "mlp", "hidden": [32], "train": {"epochs": 2}},
        "student": {"name": "mlp", "hidden": [8], "dropout": 0.1},
        "method": "kd",
        "train": {"epochs": 3, "batch_size": 32, "lr": 0.01},
        "seeds": 2,
    }
