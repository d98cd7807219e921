"""Two processes of a distributed training keep one memory: the one that a single process on the whole batch keeps."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from understudy.losses import CRD, CRDInstance
from understudy.losses.functional import of_all_processes

SAMPLES, NEGATIVES = 40, 5
# A second step with fewer samples on the second process than on the first.
STEPS = [(torch.arange(6), 3), (torch.tensor([30, 2, 11, 5, 19]), 3)]


def built(kind):
    torch.manual_seed(0)
    loss = kind(samples=SAMPLES, width=4, negatives=NEGATIVES)
    loss.prepare(torch.zeros(2, 6), torch.zeros(2, 9))
    return loss.double()


def trained(kind, *, rank=None):
    """The state after two steps, on the whole batches or on the rows of a rank."""
    loss = built(kind)
    generator = torch.Generator().manual_seed(1)
    for ids, cut in STEPS:
        student, teacher = (torch.randn(len(ids), width, generator=generator).double() for width in (6, 9))
        labels = ids % 3
        rows = slice(None) if rank is None else slice(0, cut) if rank == 0 else slice(cut, None)
        needs = {"labels": labels[rows]} if kind is CRD else {}
        torch.manual_seed(rank or 0)
        loss(student[rows], teacher[rows], sample_ids=ids[rows], **needs)
    return loss.state_dict()


def in_a_process(rank: int, folder: Path) -> None:
    import torch.distributed as distributed

    store = distributed.FileStore(str(folder / "store"), 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    rows = torch.arange(2 + rank)[:, None] + 10 * rank
    states = {kind.__name__: trained(kind, rank=rank) for kind in (CRD, CRDInstance)}
    torch.save({"rows": of_all_processes(rows), **states}, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def of_both(tmp_path_factory):
    # Processes of their own: the tests' own one opens no sockets.
    folder = tmp_path_factory.mktemp("gloo")
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder)], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


def test_rows_of_unequal_number_are_gathered_in_the_order_of_the_ranks(of_both):
    for state in of_both:
        assert state["rows"].flatten().tolist() == [0, 1, 10, 11, 12]


@pytest.mark.parametrize("kind", [CRD, CRDInstance])
def test_memories_stay_equal(of_both, kind):
    first, second = (state[kind.__name__] for state in of_both)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("kind", [CRD, CRDInstance])
def test_the_memory_is_that_of_one_process_on_the_whole_batch(of_both, kind):
    alone, together = trained(kind), of_both[0][kind.__name__]
    # What scores are divided by depends on the negatives drawn, others in each process.
    for key in (key for key in alone if "scale" not in key):
        torch.testing.assert_close(together[key], alone[key], rtol=1e-12, atol=0)
    before = built(kind).state_dict()
    seen = torch.cat([ids for ids, _ in STEPS]).unique()
    changed = (alone["contrast.of_student"] != before["contrast.of_student"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == seen.tolist()


if __name__ == "__main__":
    in_a_process(int(sys.argv[1]), Path(sys.argv[2]))
