"""Self-distillation and annealed distillation, against the definitions in NumPy and plain torch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CHECKS, MAP, Member

from understudy.losses import BYOT, Annealed


def annealed(student, teacher, *, epoch, highest=4.0, each=2):
    temperature = max(1.0, highest - epoch // each)
    return ((student - (1 - (temperature - 1) / highest) * teacher) ** 2).mean()


def byot(student, teacher, *, weights, labels, temperature=3.0, share=0.5, features=0.03):
    """With the layers' own weights in plain torch."""
    del teacher
    *maps, last, logits = (torch.from_numpy(np.asarray(each)) for each in student)
    labels = torch.from_numpy(np.asarray(labels))
    state = {name: torch.from_numpy(np.asarray(value)) for name, value in weights.items()}
    total = 0.0
    for place, features_of_stage in enumerate(maps):
        kernel, bias = state[f"branches.{place}.conv.weight"], state[f"branches.{place}.conv.bias"]
        stride, padding = (2, 1) if features_of_stage.shape[2] == 2 * last.shape[2] else (1, 0)
        deep = F.conv2d(features_of_stage, kernel, bias, stride=stride, padding=padding)
        deep = F.batch_norm(
            deep,
            None,
            None,
            state[f"branches.{place}.norm.weight"],
            state[f"branches.{place}.norm.bias"],
            training=True,
        ).relu()
        read = deep.mean((2, 3)) @ state[f"classifiers.{place}.weight"].T + state[f"classifiers.{place}.bias"]
        target = (logits / temperature).softmax(1)
        divergence = (target * (target.log() - (read / temperature).log_softmax(1))).sum(1).mean()
        total += (1 - share) * F.cross_entropy(read, labels) + share * temperature**2 * divergence
        total += features * ((deep - last) ** 2).mean()
    return float(total)


def class_numbers(generator, shape):
    return {"labels": torch.randint(5, (shape[0],), generator=generator)}


N, C, H, W = MAP
STAGES = ((N, 3, 8, 8), (N, C, 4, 4), (N, 6, 4, 4), (N, 5))
MEMBERS = [
    *(
        Member(
            f"annealed at epoch {epoch}",
            lambda: Annealed(temperature=4.0, epochs_each=2),
            annealed,
            needs=lambda _generator, _shape, epoch=epoch: {"epoch": epoch},
            minimum_at_teacher=epoch >= 6,
            zero_at_teacher=epoch >= 6,
        )
        for epoch in (0, 3, 9)
    ),
    Member(
        "byot",
        BYOT,
        byot,
        shape=STAGES,
        teacher=False,
        needs=class_numbers,
        minimum_at_teacher=False,
        zero_at_teacher=False,
        logits=False,
        stops_gradient=True,  # the last map and the last logits are targets
        layout_rtol=1e-9,
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


def test_byot_teaches_the_earlier_stages_and_leaves_the_last_alone():
    loss = BYOT()
    student = tuple(torch.randn(shape, requires_grad=True) for shape in STAGES)
    loss.prepare(student, None)
    loss(student, labels=torch.arange(N) % 5).backward()
    early, middle, last, logits = student
    assert early.grad is not None
    assert middle.grad is not None
    assert last.grad is None
    assert logits.grad is None


def test_byot_wants_two_stages():
    with pytest.raises(ValueError, match="two stages or more"):
        BYOT().prepare((torch.zeros(2, 3, 4, 4), torch.zeros(2, 5)), None)
