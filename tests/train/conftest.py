"""Stages trained in folders of their own."""

import pytest

from understudy.train.folder import RunFolder
from understudy.train.guard import StopRequest
from understudy.train.loop import fit
from understudy.train.progress import Display


@pytest.fixture
def fitted(tmp_path):
    """Train a stage in a new folder below the test's."""
    count = iter(range(100))

    def train(stage):
        folder = RunFolder(tmp_path / str(next(count)))
        fit(stage, folder, Display(None), StopRequest())
        return folder

    return train
