"""Frames without labels: images and videos, the same ones after a resume."""

import numpy as np
import pytest

pytest.importorskip("ultralytics")

import torch

from understudy.errors import UserError
from understudy.tasks.detect.frames import Frames


@pytest.fixture
def video(tmp_path):
    import cv2

    writer = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 50 * number, np.uint8))
    writer.release()
    return tmp_path / "film.avi"


def test_images_come_fitted_without_end(shapes):
    frames = Frames(str(shapes.parent / "images" / "test"), 64, seed=0)
    batch = frames.batch(20)  # more than the 8 there are
    assert batch.shape == (20, 3, 64, 64)
    assert batch.dtype == torch.uint8
    assert len(torch.unique(batch.flatten(1).float().mean(1))) >= 8


def test_a_video_gives_its_frames_in_order(video):
    batch = Frames(str(video), 64, seed=0).batch(7)
    levels = batch[:, 0, 32, 32].tolist()
    assert levels[:5] == sorted(levels[:5])
    assert abs(levels[5] - levels[0]) <= 3  # from the start again


def test_an_epoch_gives_the_same_frames_whenever_it_begins(shapes):
    source = str(shapes.parent / "images" / "test")
    first, second = Frames(source, 64, seed=3), Frames(source, 64, seed=3)
    first.batch(5)
    first.at_epoch(2)
    second.at_epoch(2)
    assert torch.equal(first.batch(6), second.batch(6))
    second.at_epoch(1)
    first.at_epoch(2)
    assert not torch.equal(first.batch(6), second.batch(6))


def test_nothing_to_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="no images or videos"):
        Frames(str(tmp_path), 64, seed=0)
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    with pytest.raises(UserError, match="can be read"):
        Frames(str(tmp_path), 64, seed=0).batch(1)
