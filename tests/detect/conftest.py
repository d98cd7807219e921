"""What the tests of detectors share; ultralytics is kept out of the home folder and silent."""

import os
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from detect_helpers import SMALL, narrow, paint

from understudy.errors import UserError

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="understudy-yolo-"))
os.environ.setdefault("YOLO_VERBOSE", "false")

# Ours comes first: it puts Pillow's reader back, which ultralytics replaces for the whole process when imported.
with suppress(UserError):
    import understudy.tasks.detect.guest  # noqa: F401


@pytest.fixture(scope="session")
def shapes(tmp_path_factory) -> Path:
    """The data YAML of 16 painted images to train on, 8 to validate and 8 to test on."""
    folder = tmp_path_factory.mktemp("shapes")
    for seed, (split, count) in enumerate({"train": 16, "val": 8, "test": 8}.items()):
        paint(folder, split, count, seed)
    plain = {"train": "images/train", "val": "images/val", "test": "images/test", "names": ["square", "disc"]}
    (folder / "shapes.yaml").write_text(yaml.safe_dump(plain))
    return folder / "shapes.yaml"


@pytest.fixture(scope="session")
def narrow_yaml(tmp_path_factory) -> Path:
    return narrow(tmp_path_factory.mktemp("narrow"))


@pytest.fixture(scope="session")
def trained(shapes, narrow_yaml, tmp_path_factory) -> Path:
    """Weights of the narrow YOLO after one epoch on the painted shapes."""
    from understudy.tasks.detect.compressor import prepare_data
    from understudy.tasks.detect.stages import Place, train

    folder = tmp_path_factory.mktemp("trained")
    _, data = prepare_data(shapes, folder)
    train(narrow_yaml, Place(folder / "run", folder / "trained.pt"), {**SMALL, "data": str(data), "epochs": 1})
    return folder / "trained.pt"
