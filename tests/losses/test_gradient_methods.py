"""Losses that take gradients or attack the teacher: on models whose gradients are known."""

import inspect
import math

import numpy as np
import pytest
import torch
from conformance import Member, docstring_is_complete
from torch import nn

from understudy.losses import BSS, KD, LwM, Sobolev
from understudy.losses.bss import other_classes

N, K = 4, 5


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


LABELS = torch.tensor([0, 3, 3, 1])


def array(tensor):
    return tensor.detach().double().numpy()


def unit(rows):
    rows = rows.reshape(len(rows), -1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


NEEDS = {
    Sobolev: {"inputs", "labels"},
    LwM: {"labels"},
    BSS: {"inputs", "labels", "student_model", "teacher_model"},
}


@pytest.mark.parametrize("kind", NEEDS, ids=lambda kind: kind.__name__)
def test_docstring_and_needs_are_complete(kind):
    docstring_is_complete(Member("", kind, lambda student, teacher: 0.0))
    arguments = inspect.signature(kind().forward).parameters.values()
    assert {each.name for each in arguments if each.kind is each.KEYWORD_ONLY} == NEEDS[kind]


# Sobolev: logits of squared pixels, z = (x ∘ x) Aᵀ, with the gradient 2 x ∘ A_y


def sobolev(images, of_student, of_teacher, *, dtype=torch.float64, loss=None):
    images = images.to(dtype).requires_grad_()
    logits = [images.flatten(1).square() @ weight.to(dtype).T for weight in (of_student, of_teacher)]
    return (loss or Sobolev())(*logits, inputs=images, labels=LABELS)


def test_sobolev_is_the_distance_of_the_gradients_by_the_image():
    images, of_student, of_teacher = draw(N, 2, 3, 2), draw(K, 12, seed=1), draw(K, 12, seed=2)
    flat = array(images).reshape(N, -1)
    gradients = [unit(2 * flat * array(weight)[LABELS]) for weight in (of_student, of_teacher)]
    expected = ((gradients[0] - gradients[1]) ** 2).mean()
    value = sobolev(images, of_student.requires_grad_(), of_teacher)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    assert sobolev(images, of_teacher.clone().requires_grad_(), of_teacher).item() < 1e-24


def test_the_gradient_of_sobolev_is_that_of_its_value_and_the_teacher_gets_none():
    images, of_student, of_teacher = draw(N, 2, 3, 2), draw(K, 12, seed=1).requires_grad_(), draw(K, 12, seed=2)
    assert torch.autograd.gradcheck(lambda weight: sobolev(images, weight, of_teacher), (of_student,), fast_mode=True)
    of_teacher.requires_grad_()
    sobolev(images, of_student, of_teacher).backward()
    assert of_student.grad is not None
    assert of_teacher.grad is None


# LwM: logits of squared maps, z_k = Σ_chw B_kc F², with the gradient 2 B_yc F


def lwm(images, of_student, of_teacher, *, dtype=torch.float64):
    images = images.to(dtype).requires_grad_()
    sides = []
    for mixing, head in (of_student, of_teacher):
        maps = torch.einsum("nchw,dc->ndhw", images, mixing.to(dtype))
        sides.append((maps, torch.einsum("ndhw,kd->nk", maps.square(), head.to(dtype))))
    return LwM()(*sides, labels=LABELS)


def test_lwm_is_the_distance_of_the_activations_of_the_class():
    images = draw(N, 2, 3, 4)
    models = (draw(3, 2, seed=1).requires_grad_(), draw(K, 3, seed=2)), (draw(6, 2, seed=3), draw(K, 6, seed=4))
    seen = []
    for mixing, head in models:
        maps = np.einsum("nchw,dc->ndhw", array(images), array(mixing))
        gradients = 2 * array(head)[LABELS][:, :, None, None] * maps
        seen.append(unit(np.maximum((gradients.mean((2, 3), keepdims=True) * maps).sum(1), 0)))
    value = lwm(images, *models)
    assert value.item() == pytest.approx(np.abs(seen[0] - seen[1]).mean(), rel=1e-12)
    same = (models[0][0].detach().clone().requires_grad_(), models[0][1])
    assert lwm(images, same, models[0]).item() < 1e-12


def test_the_gradient_of_lwm_is_that_of_its_value_and_the_teacher_gets_none():
    images, head = draw(N, 2, 3, 4), draw(K, 3, seed=2)
    student, teacher = draw(3, 2, seed=1).requires_grad_(), (draw(6, 2, seed=3), draw(K, 6, seed=4))
    assert torch.autograd.gradcheck(lambda mixing: lwm(images, (mixing, head), teacher), (student,))
    for tensor in teacher:
        tensor.requires_grad_()
    lwm(images, (student, head), teacher).backward()
    assert student.grad is not None
    assert all(tensor.grad is None for tensor in teacher)


def test_of_maps_of_two_sizes_the_larger_activation_is_averaged():
    images = draw(N, 2, 4, 4, seed=5).requires_grad_()
    heads = draw(K, 2, seed=1), draw(K, 2, seed=2)
    large, small = images.clone(), torch.nn.functional.avg_pool2d(images, 2)
    sides = [(maps, maps.square().sum((2, 3)) @ head.T) for maps, head in zip((large, small), heads, strict=True)]
    seen = []
    for (maps, _), head in zip(sides, heads, strict=True):
        gradients = 2 * array(head)[LABELS][:, :, None, None] * array(maps)
        seen.append(np.maximum((gradients.mean((2, 3), keepdims=True) * array(maps)).sum(1), 0))
    averaged = seen[0].reshape(N, 2, 2, 2, 2).mean((2, 4))
    expected = np.abs(unit(averaged) - unit(seen[1])).mean()
    assert LwM()(*sides, labels=LABELS).item() == pytest.approx(expected, rel=1e-12)


def test_logits_that_do_not_come_from_the_maps_are_refused():
    images = draw(N, 3, 4, 4).requires_grad_()
    maps = images * 2
    logits = torch.cat([maps.sum((2, 3)), maps.square().sum((2, 3))], dim=1)[:, :K]
    with pytest.raises(RuntimeError, match="teacher's logits do not come from"):
        LwM()((maps, logits), (torch.cat(maps.split(2)), logits), labels=LABELS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_compute_in_float32(dtype):
    images, student, teacher = draw(N, 2, 3, 4), draw(K, 24, seed=1).requires_grad_(), draw(K, 24, seed=2)
    models = (draw(3, 2, seed=1).requires_grad_(), draw(K, 3, seed=2)), (draw(6, 2, seed=3), draw(K, 6, seed=4))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        values = sobolev(images, student, teacher, dtype=dtype), lwm(images, *models, dtype=dtype)
    exact = sobolev(images, student, teacher), lwm(images, *models)
    for value, expected in zip(values, exact, strict=True):
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(expected.item(), rel=1e-5 if dtype is torch.float32 else 0.1)


def test_a_model_that_ran_without_gradients_is_named():
    images = draw(N, 6).requires_grad_()
    logits = images[:, :K] * 2
    with pytest.raises(RuntimeError, match="the teacher's logits have no graph"):
        Sobolev()(logits, logits.detach(), inputs=images, labels=LABELS)
    with pytest.raises(RuntimeError, match="the student's logits have no graph"):
        Sobolev()(logits, logits, inputs=images.detach(), labels=LABELS)


# BSS: on linear models the attack goes along a constant direction


def models(*, seed=0):
    linear = [nn.Linear(6, K, dtype=torch.float64) for _ in range(2)]
    for index, layer in enumerate(linear):
        layer.weight.data.copy_(draw(K, 6, seed=seed + index))
        layer.bias.data.zero_()
    return linear


def attacked_by_hand(teacher, images, origins, targets, *, steps, step_size, limit, probabilities):
    weight = array(teacher.weight)
    images = array(images).copy()
    for image, origin, target in zip(images, origins, targets, strict=True):
        for _ in range(steps):
            logits = weight @ image
            if logits.argmax() != origin:
                break
            scores, direction = logits, weight[target] - weight[origin]
            if probabilities:
                scores = np.exp(logits) / np.exp(logits).sum()
                slopes = scores[:, None] * (weight - scores @ weight)
                direction = slopes[target] - slopes[origin]
            gap = scores[origin] - scores[target]
            image += step_size * (gap + 1e-4) * direction / np.linalg.norm(direction)
            image[:] = image.clip(-limit, limit)
    return images


@pytest.mark.parametrize("scores", ["logits", "probabilities"])
@pytest.mark.parametrize("limit", [2.5, 0.9])
def test_the_attack_is_that_of_the_paper(scores, limit):
    _, teacher = models()
    images = draw(12, 6, seed=5).clamp(-limit, limit)
    origins = teacher(images).argmax(dim=1)
    targets = (origins + 1 + torch.arange(12) % 4) % K
    loss = BSS(scores=scores, limit=limit, steps=7, step_size=0.2)
    attacked = loss.attack(teacher, images, origins=origins, targets=targets)
    settings = {"steps": 7, "step_size": 0.2, "limit": limit, "probabilities": scores == "probabilities"}
    expected = attacked_by_hand(teacher, images, origins.numpy(), targets.numpy(), **settings)
    np.testing.assert_allclose(attacked.numpy(), expected, rtol=1e-9, atol=1e-12)
    assert (attacked != images).any(dim=1).all()


def test_the_attack_ends_just_across_the_boundary():
    teacher = nn.Linear(6, 2, dtype=torch.float64)
    images = draw(40, 6, seed=5)
    origins = teacher(images).argmax(dim=1)
    loss = BSS(steps=200, step_size=0.5, limit=100.0)
    with torch.no_grad():
        logits = teacher(loss.attack(teacher, images, origins=origins, targets=1 - origins))
    beyond = logits.gather(1, 1 - origins[:, None]) - logits.gather(1, origins[:, None])
    assert (beyond > 0).all()
    assert (beyond < 1e-3).all()


def bss(loss, student, teacher, images, labels):
    logits = student(images), teacher(images)
    return loss(*logits, inputs=images, labels=labels, student_model=student, teacher_model=teacher)


def test_bss_compares_the_models_on_attacked_images_that_the_teacher_had_right():
    student, teacher = models()
    images = draw(12, 6, seed=5)
    labels = teacher(images).argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % K
    right = torch.arange(12)[torch.arange(12) % 3 != 0]
    loss = BSS(temperature=2.0)
    torch.manual_seed(0)
    value = bss(loss, student, teacher, images, labels)
    torch.manual_seed(0)
    targets = other_classes(teacher(images[right]), labels[right])
    attacked = loss.attack(teacher, images[right], origins=labels[right], targets=targets)
    expected = KD(temperature=2.0, t_squared=False)(student(attacked), teacher(attacked))
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value.backward()
    assert student.weight.grad is not None
    assert teacher.weight.grad is None


def test_of_too_many_images_those_are_attacked_on_which_the_models_differ_most():
    student, teacher = models()
    images = draw(12, 6, seed=5)
    labels = teacher(images).argmax(dim=1)
    of_student, of_teacher = (model(images).softmax(dim=1) for model in (student, teacher))
    differences = (of_student - of_teacher).square()
    scores = differences.sum(dim=1) - differences.gather(1, labels[:, None]).squeeze(1)
    seen = []

    class Recorded(BSS):
        def attack(self, model, images, *, origins, targets):
            seen.append(images)
            return images

    bss(Recorded(samples=5), student, teacher, images, labels)
    wanted = images[scores.topk(5).indices]
    assert sorted(map(tuple, seen[0].tolist())) == sorted(map(tuple, wanted.tolist()))


def test_where_the_teacher_is_always_wrong_bss_is_zero_with_a_gradient_of_zero():
    student, teacher = models()
    images = draw(6, 6, seed=5)
    value = bss(BSS(), student, teacher, images, (teacher(images).argmax(dim=1) + 1) % K)
    value.backward()
    assert value.item() == 0
    assert student.weight.grad is not None
    assert not student.weight.grad.any()


def test_other_classes_are_drawn_by_the_teachers_probabilities():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(40_000, 4)
    torch.manual_seed(0)
    drawn = other_classes(logits, torch.zeros(40_000, dtype=torch.long))
    shares = torch.bincount(drawn, minlength=4) / 40_000
    rest = torch.tensor([0.0, math.e, 1.0, 1 / math.e])
    torch.testing.assert_close(shares, rest / rest.sum(), rtol=0, atol=0.01)


def test_a_flat_place_does_not_break_the_attack():
    flat = nn.Linear(6, K)
    nn.init.zeros_(flat.weight)
    images = draw(3, 6).float()
    zeros = torch.zeros(3, dtype=torch.long)
    nn.init.zeros_(flat.bias)
    assert torch.equal(BSS().attack(flat, images, origins=zeros, targets=zeros + 1), images.clamp(-2.5, 2.5))
