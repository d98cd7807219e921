"""The teachers' stream: what is queued before what, told by a stand-in for CUDA; on a GPU, the bits as well."""

from contextlib import contextmanager

import pytest
import torch

from understudy.data import Batch
from understudy.distill import Answer
from understudy.train.overlap import beside, tensors_in


@pytest.fixture
def queued(monkeypatch):
    """What is asked of two streams, in order."""
    told: list[str] = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            told.append(f"{self.name} waits for {other.name}")

        def record_event(self):
            return f"{self.name} so far"

        def wait_event(self, event):
            told.append(f"{self.name} waits for {event}")

    @contextmanager
    def on(stream):
        told.append(f"on {stream.name}:")
        yield
        told.append("back")

    students = Stream("students")
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("teachers"))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: students)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: told.append(f"{stream.name} read"))
    return told


def test_the_next_group_is_queued_before_the_steps_on_this_one_and_is_waited_for(queued):
    def groups():
        for number in range(2):
            queued.append(f"answer {number}")
            yield [torch.zeros(1, device="meta"), torch.zeros(1)]

    for number, _ in enumerate(beside(groups(), torch.device("cuda"))):
        queued.append(f"step {number}")
    ask = ["teachers waits for students", "on teachers:"]
    assert queued == [
        *ask, "answer 0", "back",
        *ask, "answer 1", "back",
        "students waits for teachers so far", "students read", "step 0",
        *ask, "back",
        "students waits for teachers so far", "students read", "step 1",
    ]  # fmt: skip


def test_on_a_processor_nothing_is_made_before_it_is_asked_for():
    made = []
    groups = beside((made.append(number) or number for number in range(3)), torch.device("cpu"))
    for number in groups:
        assert made == list(range(number + 1))


def test_every_tensor_of_batches_and_answers_is_found():
    one = [torch.zeros(1) for _ in range(8)]
    batch = Batch(one[0], one[1], one[2], one[3], second=one[4])
    answer = Answer(one[5], {"layer": one[6]}, one[7])
    found = list(tensors_in(([{"feed": batch}], [{"arm": answer, "alone": None}])))
    assert [id(tensor) for tensor in found] == [id(tensor) for tensor in one]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_what_was_made_beside_is_what_is_made_alone():
    device = torch.device("cuda")
    weight = torch.randn(1024, 1024, device=device)

    def groups():
        for number in range(20):
            image = torch.full((1024, 1024), float(number), device=device)
            yield image, image @ weight

    total = torch.zeros(1024, 1024, device=device)
    for image, answer in beside(groups(), device):
        for _ in range(5):
            total = total + (image @ weight - answer)
    assert total.abs().max() == 0
