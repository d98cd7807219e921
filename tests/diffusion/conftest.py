"""One thread, tiny networks, and models whose answers are known."""

import pytest
import torch

pytest.importorskip("diffusers")


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_recipe() -> dict:
    """A recipe whose run takes a few seconds, as plain data."""
    return {
        "name": "tiny",
        "task": "diffusion",
        "data": {"name": "digits", "train": 120, "validation": "none"},
        "teacher": {
            "name": "tiny",
            "channels": 8,
            "groups": 4,
            "train": {"updates": 6, "batch_size": 16, "lr": 1e-3, "ema": 0.9},
        },
        "steps": [8, 4, 2, 1],
        "method": {"name": "progressive", "updates": 4, "batch_size": 16, "lr": 1e-4},
        "evaluate": {"images": 16, "noisy": False, "judge": {"epochs": 1, "widths": [8, 8]}},
        "train": {"threads": 1, "evaluate_every": 2},
    }
