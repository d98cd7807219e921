"""Targets of the methods, against what they must be on models whose answers are known."""

import copy

import pytest
import torch
from torch import nn

from understudy.tasks.diffusion import Consistency, Process, Tract, TwoSteps, ddim_step, two_step_target
from understudy.tasks.diffusion.learner import Condition, Denoising
from understudy.tasks.diffusion.targets import Data, Draw, Taught


class Small(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = nn.Conv2d(1, 1, 3, padding=1).double()

    def forward(self, z, t, y=None):
        return torch.tanh(self.layer(z)) * (1 + t.reshape(-1, 1, 1, 1))


PROCESS = Process(-10.0, 10.0, "v")


def drawn(steps, step):
    torch.manual_seed(3)
    x, eps = torch.randn(2, len(step), 1, 4, 4, dtype=torch.float64)
    step = torch.tensor(step)
    t = (step + 1).double() / steps
    return PROCESS.diffuse(x, eps, t), Draw(x, eps, t, step, 0)


def test_data_gives_back_what_noise_was_mixed_with():
    z, draw = drawn(8, [0, 3, 7])
    wanted = Data(PROCESS)(z, draw, None)
    again = PROCESS.denoise(lambda *_: wanted.v, z, draw.t)
    assert torch.allclose(again.x, draw.x)
    assert torch.allclose(again.eps, draw.eps)


def test_tract_with_groups_of_two_taught_by_the_teacher_itself_is_progressive_distillation():
    teacher = Small()
    step = [0, 1, 2, 3, 6, 7]
    z, draw = drawn(8, step)
    target = Tract(teacher, teacher, PROCESS, teacher_steps=8, steps=4, decay=0.5)(z, draw, None)
    odd = draw.step % 2 == 1  # where the student's own step begins
    wanted = two_step_target(teacher, z[odd], draw.step[odd] // 2, 4, process=PROCESS)
    assert torch.allclose(target.x[odd], wanted.x)
    # Half-way through a group only the teacher's step is left.
    t, s = draw.t[~odd], draw.step[~odd].double() / 8
    one = ddim_step(teacher, z[~odd], t, s, process=PROCESS)
    there = ddim_step(lambda *_: target.v[~odd], z[~odd], t, s, process=PROCESS)
    assert torch.allclose(there, one)


def test_a_perfect_tract_student_gives_the_teachers_sample():
    # The last step of a group first: each target, seen by the student, makes the one before it right.
    process = Process(prediction="x")

    def teacher(z, t, y=None):
        alpha, sigma = process.scales(t, z)
        return (alpha * 0.2 * z + sigma**2 * 0.3) / (alpha**2 * 0.2 + sigma**2)

    class Learnt(nn.Module):
        def forward(self, z, t, y=None):
            step = (t * 8).round().long() - 1
            if (step < 0).all():
                return z
            target = Tract(teacher, nn.Identity(), process, teacher_steps=8, steps=2, decay=0.5)
            target.average = self
            return target(z, Draw(z, z, t, step, 0), None).x

    from understudy.tasks.diffusion import sample

    noise = torch.randn(3, 1, 2, 2, dtype=torch.float64)
    wanted = sample(teacher, noise, 8, process=process)
    assert torch.allclose(sample(Learnt(), noise, 2, process=process), wanted, atol=1e-10)


def test_consistency_is_held_by_the_path_itself_at_its_end():
    teacher, student = Small(), Small(1)
    z, draw = drawn(4, [0, 2])
    target = Consistency(teacher, student, PROCESS, steps=4, decay=0.9)
    found = target(z, draw, None).x
    s = draw.step.double() / 4
    z_s = ddim_step(teacher, z, draw.t, s, process=PROCESS)
    assert torch.equal(found[0], z_s[0])
    assert torch.allclose(found[1], PROCESS.denoise(student, z_s, s).x[1])


def test_the_self_teacher_follows_once_an_update_and_starts_from_where_it_is():
    student = Small()
    target = Consistency(Small(), student, PROCESS, steps=4, decay=0.75)
    start = copy.deepcopy(student.layer.weight.detach())
    target.follow(student, 0)
    assert torch.equal(target.average.layer.weight, start)
    with torch.no_grad():
        student.layer.weight += 1
    for _ in range(3):  # micro-batches of one update
        target.follow(student, 1)
    assert torch.allclose(target.average.layer.weight, start + 0.25)
    assert not any(parameter.requires_grad for parameter in target.parameters())


def test_a_teachers_clipped_image_is_what_a_converted_student_learns():
    teacher = Small()
    z, draw = drawn(8, [7, 5])
    clipped = Process(-10.0, 10.0, "v", clip=True)
    target = Taught(lambda z, t, y: 5 * teacher(z, t), clipped)(z, draw, None)
    assert target.x.abs().max() <= 1
    alpha, sigma = PROCESS.scales(draw.t, z)
    assert torch.allclose(alpha * target.x + sigma * target.eps, z)


def learner(steps, target=None, **more):
    student = Small(2).float()
    target = target or Data(PROCESS)
    return Denoising(student, target, process=PROCESS, weighting="v_mse", steps=steps, name="stage", **more)


def test_draws_are_keyed_by_the_update_and_the_stage():
    images = torch.randn(5, 1, 4, 4)
    one, other = learner(4), learner(4)
    other.name = "another stage"
    losses = []
    for stage, seed in ((one, 1), (one, 1), (one, 2), (other, 1)):
        torch.manual_seed(seed)
        losses.append(stage(images).total.item())
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_micro_batches_of_one_update_draw_different_noise():
    images = torch.zeros(5, 1, 4, 4)
    stage = learner(0)
    torch.manual_seed(1)
    assert stage(images).total.item() != stage(images).total.item()


def test_times_are_those_of_the_students_steps():
    seen = []

    class Watching(Small):
        def forward(self, z, t, y=None):
            seen.append(t)
            return super().forward(z, t)

    stage = learner(4)
    stage.student = Watching().float()
    for _ in range(20):
        stage(torch.randn(8, 1, 4, 4))
    assert set(torch.cat(seen).tolist()) == {0.25, 0.5, 0.75, 1.0}


def test_gradients_reach_the_student_alone():
    teacher = Small().float()
    stage = learner(4, TwoSteps(teacher, PROCESS, 4))
    stage(torch.randn(4, 1, 4, 4)).total.backward()
    assert stage.student.layer.weight.grad is not None
    assert teacher.layer.weight.grad is None
    assert not any("teacher" in name or "held" in name for name in stage.state_dict())


def test_conditions_drop_labels_and_draw_the_strength_of_guidance():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 7
    dropped = Condition(null=7, dropout=0.2)(labels, generator)
    assert (dropped == 7).float().mean().item() == pytest.approx(0.2, abs=0.04)
    assert torch.equal(dropped[dropped != 7], labels[dropped != 7])
    assert Condition(null=7)(torch.tensor([-1, 2]), generator).tolist() == [7, 2]
    strong = Condition(guidance=(1.0, 3.0))(labels, generator)
    assert torch.equal(strong[:, 0].long(), labels)
    assert strong[:, 1].min() >= 1
    assert strong[:, 1].max() <= 3
    assert strong[:, 1].std() > 0.4
