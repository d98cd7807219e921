"""Schemes: who teaches whom. Each against its formula written out, or against what a hand would do."""

import copy
import warnings

import numpy as np
import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import nn

import understudy as us
from understudy.data import Preprocess
from understudy.distill import Ensemble, Learner, Member, Mutual, Share, tapped
from understudy.distill.learner import gradient_norms
from understudy.distill.pretraining import Pretraining
from understudy.errors import UserError
from understudy.models.start import start_from


def mlp(seed: int, width: int = 8) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 5))


def cnn(seed: int, width: int) -> nn.Module:
    torch.manual_seed(seed)
    first = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
    second = nn.Sequential(nn.Conv2d(width, 2 * width, 3, 2, 1), nn.BatchNorm2d(2 * width), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 5))
    return nn.Sequential(first, second, head)


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 1, 4, 4, generator=generator), torch.arange(count) % 5


def softmax(logits: np.ndarray) -> np.ndarray:
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


# Several teachers


def test_several_teachers_are_the_weighted_mean_of_probabilities_at_the_loss_temperature():
    images, labels = batch()
    members, student = [mlp(1).eval(), mlp(2).eval()], mlp(3)
    asked = [Member(share=3.0), Member(preprocess=Preprocess(mean=(0.5,), std=(2.0,)), share=1.0)]
    ensemble = Ensemble(copy.deepcopy(members), asked)
    distiller = us.Distiller(
        student=student, teacher=ensemble, objectives=[us.Objective(us.losses.KD(temperature=4))], example=images
    )
    found = distiller(images, labels).total.item()

    with torch.no_grad():
        first, second = members[0](images).numpy(), members[1](asked[1].preprocess(images)).numpy()
        own = student(images).numpy()
    target = 0.75 * softmax(first / 4) + 0.25 * softmax(second / 4)
    wanted = 16 * (target * (np.log(target) - np.log(softmax(own / 4)))).sum(1).mean()
    assert found == pytest.approx(wanted, rel=1e-5)


def test_an_objective_may_learn_from_one_of_several_teachers():
    images, labels = batch()
    members, student = [mlp(1), mlp(2)], mlp(3)
    of_one = us.Distiller(
        student=student,
        teacher=Ensemble(members),
        objectives=[us.Objective(us.losses.KD(), members=[1])],
        example=images,
    )
    alone = us.Distiller(student=student, teacher=members[1], objectives=[us.Objective(us.losses.KD())], example=images)
    assert of_one(images, labels).total.item() == pytest.approx(alone(images, labels).total.item(), rel=1e-6)


def test_features_of_an_ensemble_are_its_first_members():
    images, _ = batch()
    members = [cnn(1, 4).eval(), cnn(2, 8).eval()]
    distiller = us.Distiller(
        student=cnn(3, 2),
        teacher=Ensemble(members),
        objectives=[us.Objective(us.losses.AT(), student_tap="auto")],
        example=images,
    )
    assert all(path.startswith("members.0.") for path in distiller.teacher_taps)


# Mutual learning


def test_mutual_learning_is_its_formula_and_no_gradient_crosses_to_the_peer():
    images, labels = batch()
    students = [mlp(1), mlp(2, 12), mlp(3)]
    learner = Mutual(
        students=students,
        objectives=[
            us.Objective(us.losses.CrossEntropy(), 0.5, name="labels"),
            us.Objective(us.losses.KD(temperature=1), 2.0),
        ],
        example=images,
    )
    losses = learner(images, labels)
    losses.total.backward()

    twins = copy.deepcopy(students)
    logits = [twin(images) for twin in twins]
    wanted = torch.zeros(())
    for place, own in enumerate(logits):
        peers = [peer.detach() for other, peer in enumerate(logits) if other != place]
        divergences = [F.kl_div(own.log_softmax(1), peer.softmax(1), reduction="batchmean") for peer in peers]
        wanted = wanted + 0.5 * F.cross_entropy(own, labels) + 2 * torch.stack(divergences).mean()
    for twin in twins:
        twin.zero_grad()
    wanted.backward()
    assert losses.total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for student, twin in zip(students, twins, strict=True):
        for parameter, other in zip(student.parameters(), twin.parameters(), strict=True):
            assert torch.allclose(parameter.grad, other.grad, atol=1e-6)
    assert learner.exported is students[0]


def test_mutual_learning_refuses_features_and_lone_students():
    images, _ = batch()
    with pytest.raises(us.UserError, match="compares features"):
        Mutual(
            students=[cnn(1, 4), cnn(2, 4)],
            objectives=[us.Objective(us.losses.AT(), student_tap="auto")],
            example=images,
        )
    with pytest.raises(us.UserError, match="two students"):
        Mutual(students=[mlp(1)], objectives=[us.Objective(us.losses.KD())], example=images)


# Init stages


def test_an_init_stage_trains_the_paraphraser_alone():
    images, labels = batch(8)
    student, teacher = cnn(1, 4), cnn(2, 8)
    distiller = us.Distiller(
        student=student,
        teacher=teacher,
        objectives=[us.Objective(us.losses.FT(), student_tap="auto", name="ft")],
        example=images,
    )
    before = copy.deepcopy(distiller.state_dict())
    learner = Pretraining(distiller, distiller.objective_list())
    optimizer = torch.optim.Adam(learner.parameters(), lr=1e-2)
    answer = distiller.ask(images)
    history = []
    for _ in range(30):
        optimizer.zero_grad()
        losses = learner(images, labels, answer=answer)
        losses.total.backward()
        optimizer.step()
        history.append(losses.total.item())
    assert history[-1] < 0.7 * history[0]
    moved = {name for name, value in distiller.state_dict().items() if not torch.equal(value, before[name])}
    assert moved
    assert all(".paraphrasers." in name for name in moved)


# SimKD's student


def test_what_simkd_exports_is_projector_and_teachers_layer_on_the_students_map(tmp_path):
    from understudy.models import Card, build, load, save
    from understudy.recipe.schema import Model

    images, labels = batch()
    described = {"name": "cnn", "widths": [4, 8]}
    student = build(Model.model_validate(described), classes=5, shape=(1, 4, 4))
    teacher = cnn(2, 8)
    distiller = us.Distiller(
        student=student,
        teacher=teacher,
        objectives=[us.Objective(us.losses.SimKD(), student_tap="last", teacher_tap="1")],
        example=images,
    )
    distiller(images, labels).total.backward()
    exported = distiller.exported.eval()
    (tap,) = distiller.student_taps
    with tapped(student, [tap]) as features:
        student.eval()(images)
    loss = distiller.objective_list()[0].loss
    pooled = loss.projector(features[tap]).mean((2, 3))
    assert torch.allclose(exported(images), teacher[2][2](pooled), atol=1e-6)

    names = tuple("abcde")
    save(exported, tmp_path, Card(exported.described(described), names, (1, 4, 4), Preprocess()))
    assert torch.equal(load(tmp_path)(images), exported(images))


def test_simkd_is_refused_where_the_teachers_layer_does_not_take_the_average_of_its_map():
    from understudy.models.vit import vit

    images, _ = batch()
    teacher = vit(classes=5, shape=(1, 4, 4), patch=2, width=8, depth=1, heads=1)
    how = {"student_tap": "last", "teacher_tap": "blocks.0"}
    with pytest.raises(UserError, match=r"does not classify the average of its map at 'blocks\.0'"):
        us.Distiller(
            student=cnn(2, 4),
            teacher=teacher,
            objectives=[us.Objective(us.losses.SimKD(), **how)],
            example=images,
        )


# Gradient shares


def test_gradient_norms_are_those_of_each_term_alone():
    images, labels = batch()
    student = mlp(1)
    logits = student(images)
    terms = {"labels": F.cross_entropy(logits, labels), "squares": logits.square().mean()}
    norms = gradient_norms(terms, student.parameters())
    for name, term in terms.items():
        student.zero_grad()
        term.backward(retain_graph=True)
        wanted = torch.cat([parameter.grad.flatten() for parameter in student.parameters()]).norm()
        assert norms[name] == pytest.approx(wanted.item(), rel=1e-6)


def test_a_held_objective_has_its_share_of_the_gradient():
    images, labels = batch()
    distiller = us.Distiller(
        student=mlp(1),
        teacher=mlp(2),
        objectives=[
            us.Objective(us.losses.CrossEntropy(), 0.3, name="labels"),
            us.Objective(us.losses.KD(), Share(0.25), name="kd"),
            us.Objective(us.losses.LogitMSE(), Share(0.5), name="logits"),
        ],
        example=images,
    )
    norms = gradient_norms(distiller(images, labels).terms, distiller.student.parameters())
    distiller.hold(norms, 0)
    weighted = {name: distiller.weights_at(0)[name] * norm for name, norm in norms.items()}
    total = sum(weighted.values())
    assert weighted["kd"] / total == pytest.approx(0.25)
    assert weighted["logits"] / total == pytest.approx(0.5)
    assert distiller.weights_at(0)["labels"] == 0.3


# Two views


def test_a_loss_of_two_views_gets_both_and_the_labels_are_those_of_both():
    images, labels = batch()
    second = images.flip(-1)
    student, teacher = mlp(1), mlp(2).eval()
    loss = us.losses.MLKD(variant="release")
    distiller = us.Distiller(
        student=student,
        teacher=teacher,
        objectives=[us.Objective(us.losses.CrossEntropy(), name="labels"), us.Objective(loss, name="mlkd")],
        example=images,
    )
    found = distiller(images, labels, second=second).parts
    own, other = (tuple(model(view) for view in (images, second)) for model in (student, teacher))
    assert found["mlkd"].item() == pytest.approx(loss(own, other).item(), rel=1e-5)
    assert found["labels"].item() == pytest.approx(
        F.cross_entropy(torch.cat(own), torch.cat([labels, labels])).item(), rel=1e-6
    )


# The optimiser, and wrapping


def learner_with_adapters(images: torch.Tensor) -> us.Distiller:
    objective = us.Objective(us.losses.FitNet(), student_tap="1", teacher_tap="1", name="hint")
    return us.Distiller(student=cnn(1, 4), teacher=cnn(2, 8), objectives=[objective], example=images)


def test_an_optimiser_without_the_adapters_is_told_so_once():
    images, labels = batch()
    distiller = learner_with_adapters(images)
    optimizer = torch.optim.SGD(distiller.student.parameters(), lr=0.1)
    distiller(images, labels).total.backward()
    with pytest.warns(UserWarning, match="make it of distiller.parameters"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


def test_an_optimiser_with_them_hears_nothing():
    images, labels = batch()
    distiller = learner_with_adapters(images)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller(images, labels).total.backward()
    optimizer.step()


def test_ddp_wraps_a_distiller_and_gives_its_gradients(tmp_path):
    images, labels = batch()
    plain = learner_with_adapters(images)
    wrapped = copy.deepcopy(plain)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(wrapped)
        parallel(images, labels).total.backward()
        plain(images, labels).total.backward()
    finally:
        torch.distributed.destroy_process_group()
    for name, parameter in plain.named_parameters():
        other = wrapped.get_parameter(name)
        assert (parameter.grad is None) == (other.grad is None), name
        assert parameter.grad is None or torch.allclose(parameter.grad, other.grad)
    assert not any("teacher" in name for name in parallel.state_dict())


def test_every_learner_has_what_the_loop_asks_for():
    assert {"exported", "asks_teacher", "weights_at", "weigh", "hold", "held", "describe"} <= set(dir(Learner))


# Starting from the teacher


def test_a_shallower_stack_starts_from_every_kth_block_of_the_teacher():
    def stack(depth: int) -> nn.Module:
        model = nn.Module()
        model.stem = nn.Linear(4, 4)
        model.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(depth))
        model.head = nn.Linear(4, 3 if depth == 3 else 5)
        return model

    teacher, student = stack(12), stack(3)
    head = student.head.weight.clone()
    assert start_from(student, teacher, blocks=True) == 8  # stem and three blocks, weight and bias
    for own, theirs in enumerate((3, 7, 11)):
        assert torch.equal(student.blocks[own].weight, teacher.blocks[theirs].weight)
    assert torch.equal(student.head.weight, head)

    plain = stack(3)
    start_from(plain, teacher)
    assert torch.equal(plain.blocks[1].weight, teacher.blocks[1].weight)


# Input gradients


def test_an_input_gradient_loss_gives_the_teacher_what_the_student_gets_once_prepared():
    images, labels = batch()
    student, teacher = cnn(1, 4), cnn(2, 8).eval()
    prepare = Preprocess(mean=(0.5,), std=(2.0,))
    loss = us.losses.Sobolev()
    distiller = us.Distiller(
        student=student,
        teacher=us.Teacher(teacher, preprocess=prepare, chunk=4),
        objectives=[us.Objective(loss, name="sobolev")],
        example=images,
    )
    inputs = prepare(images)
    found = distiller(inputs, labels).total.item()
    twin = inputs.clone().requires_grad_()
    assert found == pytest.approx(loss(student(twin), teacher(twin), inputs=twin, labels=labels).item(), rel=1e-5)
