"""Relations between samples and contrast between them, against the definitions in NumPy."""

from functools import partial
from math import factorial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CHECKS, Member, class_labels

from understudy.losses import (
    CC,
    CRD,
    DCD,
    IRG,
    PKT,
    RKD,
    SP,
    AliasSampler,
    CCNeighbours,
    CRDInstance,
    SupervisedPKT,
    crd_memory,
)
from understudy.losses.crd_memory import contrast_loss
from understudy.losses.functional import gram

SAMPLES, WIDTH, NEGATIVES = 40, 4, 5

# The same mathematics in NumPy, from the definitions.


def rows_of_length_1(rows, eps=0.0):
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True) + eps, 1e-12)


def divergence(student, teacher, eps):
    student, teacher = (each / each.sum(axis=1, keepdims=True) for each in (student, teacher))
    return (teacher * np.log((teacher + eps) / (student + eps))).mean()


def cosines(features, eps):
    rows = rows_of_length_1(features.reshape(len(features), -1), eps)
    return (rows @ rows.T + 1) / 2


def pkt(student, teacher, *, eps=1e-7):
    return divergence(cosines(student, eps), cosines(teacher, eps), eps)


def supervised_pkt(student, teacher, labels, *, eps=1e-7):
    return divergence(cosines(student, eps), (labels[:, None] == labels).astype(float), eps)


def sp(student, teacher):
    pairs = zip(student, teacher, strict=True) if isinstance(student, tuple) else [(student, teacher)]
    total = 0.0
    for pair in pairs:
        ours, theirs = (each.reshape(len(each), -1) for each in pair)
        ours, theirs = rows_of_length_1(ours @ ours.T), rows_of_length_1(theirs @ theirs.T)
        total += ((ours - theirs) ** 2).sum() / len(ours) ** 2
    return total


def huber(difference):
    size = np.abs(difference)
    return np.where(size < 1, size**2 / 2, size - 0.5)


def rkd(student, teacher, *, distance=25.0, angle=50.0, normalize=False):
    distances, angles = [], []
    for rows in (student.reshape(len(student), -1), teacher.reshape(len(teacher), -1)):
        rows = rows_of_length_1(rows) if normalize else rows
        differences = rows[None] - rows[:, None]
        lengths = np.linalg.norm(differences, axis=2)
        distances.append(lengths / (lengths[lengths > 0].mean() if (lengths > 0).any() else 1.0))
        unit = differences / np.maximum(lengths, 1e-12)[:, :, None]
        angles.append(np.einsum("ijd,ikd->ijk", unit, unit))
    return distance * huber(distances[0] - distances[1]).mean() + angle * huber(angles[0] - angles[1]).mean()


def cc(student, teacher, *, gamma=0.4, order=2):
    kernels = []
    for features in (student, teacher):
        rows = rows_of_length_1(features)
        terms = [
            np.exp(-2 * gamma) * (2 * gamma) ** power / factorial(power) * (rows @ rows.T) ** power
            for power in range(order + 1)
        ]
        kernels.append(sum(terms))
    return ((kernels[0] - kernels[1]) ** 2).mean()


def linear(features, weights, name):
    return features @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def cc_neighbours(student, teacher, weights):
    errors = np.abs(linear(student, weights, "embed_student") - linear(teacher, weights, "embed_teacher"))
    pairs = [errors[index] @ errors[index + 1] for index in range(len(errors) - 1)]
    return np.mean(pairs) if pairs else 0.0


def irg(student, teacher, *, vertex=0.1, edge=5.0, transformation=5.0):
    def edges(features):
        rows = features.reshape(len(features), -1)
        squares = ((rows[None] - rows[:, None]) ** 2).sum(axis=2)
        return squares / max(squares.max(), 1e-12)

    def way(first, second):
        samples, _, height, width = second.shape
        first = first.reshape(samples, -1, height, first.shape[2] // height, width, first.shape[3] // width)
        first = first.mean(axis=(3, 5))
        second = second.reshape(samples, first.shape[1], -1, height, width).mean(axis=2)
        squares = ((first - second) ** 2).sum(axis=(1, 2, 3))
        return squares / squares.max()

    vertices = ((student[3] - teacher[3]) ** 2).mean()
    levels = [((edges(student[level]) - edges(teacher[level])) ** 2).mean() for level in range(3)]
    ways = ((way(*student[:2]) - way(*teacher[:2])) ** 2).mean()
    return vertex * vertices + edge * np.mean(levels) + transformation * ways


def irg_of_stages(student, teacher):
    """The last two of three stages, and the mean of the last for an embedding."""
    return irg(*((*side[1:3], side[2].mean(axis=(2, 3)), side[3]) for side in (student, teacher)))


def contrast(student, teacher, weights, indices):
    student = rows_of_length_1(linear(student, weights, "contrast.embed_student"))
    teacher = rows_of_length_1(linear(teacher, weights, "contrast.embed_teacher"))
    noise, total = (indices.shape[1] - 1) / SAMPLES, 0.0
    for rows, memory, scale in ((student, "of_teacher", "student"), (teacher, "of_student", "teacher")):
        remembered = weights[f"contrast.{memory}"][indices]
        scores = np.exp(np.einsum("nd,nkd->nk", rows, remembered) / 0.07) / weights[f"contrast.scale_{scale}"]
        same = scores[:, 0] / (scores[:, 0] + noise + 1e-7)
        different = noise / (scores[:, 1:] + noise + 1e-7)
        total -= (np.log(same).sum() + np.log(different).sum()) / len(rows)
    return total


def crd_instance(student, teacher, sample_ids, weights):
    others = torch.randint(SAMPLES, (len(student), NEGATIVES)).numpy()  # even weights never take the alias
    return contrast(student, teacher, weights, np.concatenate([sample_ids[:, None], others], axis=1))


def crd(student, teacher, sample_ids, labels, weights):
    classes = weights["classes"].copy()
    classes[sample_ids] = labels
    rows = []
    for own, label, draws in zip(sample_ids, labels, torch.rand(len(student), NEGATIVES).numpy(), strict=True):
        order = np.argsort(classes, kind="stable")
        others = [index for index in order if classes[index] != label]
        rows.append([own, *(others[int(draw * np.float32(len(others)))] for draw in draws)])
    return contrast(student, teacher, weights, np.array(rows))


def dcd(student, teacher, weights, *, alpha=0.5):
    student = rows_of_length_1(linear(student, weights, "embed_student"))
    teacher = rows_of_length_1(linear(teacher, weights, "embed_teacher"))
    scores = np.exp(student @ teacher.T * np.exp(weights["log_scale"]) + weights["bias"])
    finds, found = scores / scores.sum(axis=1, keepdims=True), (scores / scores.sum(axis=0)).T
    consistency = (found * np.log(found / finds)).sum() / len(scores)
    return -np.log(np.diag(finds)).mean() + alpha * consistency


def ids(generator, shape):
    return {"sample_ids": torch.randperm(SAMPLES, generator=generator)[: shape[0]]}


def ids_and_labels(generator, shape):
    return ids(generator, shape) | class_labels(generator, shape)


def with_scales(kind, **options):
    loss = kind(samples=SAMPLES, width=WIDTH, **{"negatives": NEGATIVES, **options})
    # A first batch estimates them, without a gradient: gradcheck wants them fixed.
    loss.contrast.scale_student.fill_(60.0)
    loss.contrast.scale_teacher.fill_(30.0)
    return loss


relational = partial(Member, logits=False)
wider = partial(relational, teacher_shape=(6, 7), minimum_at_teacher=False)
MAPS = ((6, 3, 4, 4), (6, 5, 2, 2))
LEVELS = ((6, 2, 4, 4), (6, 4, 2, 2), (6, 5), (6, 3))
STAGES = ((6, 2, 8, 8), (6, 2, 4, 4), (6, 4, 2, 2), (6, 3))
MEMBERS = [
    wider("pkt", PKT, pkt),
    relational("pkt-exact", partial(PKT, eps=0.0), partial(pkt, eps=0.0), maps=True),
    wider("pkt-supervised", SupervisedPKT, supervised_pkt, needs=class_labels, teacher=False),
    relational("sp", SP, sp, maps=True),
    relational("sp-taps", SP, sp, shape=MAPS),
    wider("sp-wider", SP, sp),
    relational("rkd", RKD, rkd, maps=True),
    wider("rkd-wider", RKD, rkd),
    wider("rkd-distance", partial(RKD, angle=0.0), partial(rkd, angle=0.0)),
    relational("rkd-normalize", partial(RKD, normalize=True), partial(rkd, normalize=True)),
    relational("cc", CC, cc),
    wider("cc-wider", partial(CC, gamma=0.9, order=4), partial(cc, gamma=0.9, order=4)),
    wider("cc-neighbours", partial(CCNeighbours, width=3), cc_neighbours, permutable=False),
    relational("irg", IRG, irg, shape=LEVELS),
    relational("irg-stages", IRG, irg_of_stages, shape=STAGES, minimum_at_teacher=False),
    wider("crd", partial(with_scales, CRD), crd, needs=ids_and_labels, permutable=False),
    wider("crd-instance", partial(with_scales, CRDInstance), crd_instance, needs=ids, permutable=False),
    wider("dcd", partial(DCD, width=3), dcd),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


# What does not fit the table


def draw(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_rkd_keeps_its_digits_in_float32_far_from_the_origin(offset):
    student, teacher = draw(20, 16) + offset, draw(20, 16, seed=1) + offset
    exact = RKD()(student, teacher).item()
    assert RKD()(student.float(), teacher.float()).item() == pytest.approx(exact, rel=1e-4 if offset else 1e-6)


def test_rkd_has_a_finite_gradient_where_two_samples_are_one():
    student = draw(5, 4).float()
    student[3] = student[1]
    student.requires_grad_()
    RKD()(student, draw(5, 4, seed=1).float()).backward()
    assert student.grad.isfinite().all()
    assert student.grad.abs().max() < 1e6


def crd_of(kind=CRD, **options):
    torch.manual_seed(0)
    loss = kind(samples=SAMPLES, width=WIDTH, **{"negatives": NEGATIVES, **options})
    loss.prepare(draw(2, 6).float(), draw(2, 9).float())
    return loss.double()


def test_crd_draws_evenly_from_other_classes_only():
    loss = crd_of(negatives=4000)
    labels = torch.arange(SAMPLES) % 3
    loss.classes.copy_(labels)
    drawn = loss._of_other_classes(torch.tensor([0, 2]))
    for row, label in zip(drawn, (0, 2), strict=True):
        counts = torch.bincount(row, minlength=SAMPLES)
        assert (counts[labels == label] == 0).all()
        others = counts[labels != label].double()
        assert (others / others.mean() - 1).abs().max() < 0.35


def test_crd_still_draws_where_all_are_of_one_class():
    loss = crd_of()
    loss.classes.zero_()
    assert loss._of_other_classes(torch.tensor([0])).max() < SAMPLES


def test_crd_refuses_mixed_labels():
    with pytest.raises(ValueError, match="crd_instance"):
        crd_of()(draw(2, 6), draw(2, 9), sample_ids=torch.tensor([0, 1]), labels=torch.full((2, 3), 1 / 3))


@pytest.mark.parametrize("negatives", [1, 30])
def test_crd_remembers_with_momentum_on_the_unit_sphere(negatives):
    loss = crd_of(CRDInstance, negatives=negatives)
    before = loss.contrast.of_student.clone()
    student, chosen = draw(2, 6), torch.tensor([7, 3])
    loss(student, draw(2, 9, seed=1), sample_ids=chosen)
    embedded = torch.nn.functional.normalize(loss.contrast.embed_student(student), dim=1)
    expected = torch.nn.functional.normalize(0.5 * before[chosen] + 0.5 * embedded, dim=1)
    torch.testing.assert_close(loss.contrast.of_student[chosen], expected.detach())
    untouched = torch.ones(SAMPLES, dtype=torch.bool)
    untouched[chosen] = False
    assert torch.equal(loss.contrast.of_student[untouched], before[untouched])


def test_crd_gathers_what_a_product_with_the_whole_memory_gives(monkeypatch):
    results = []
    for cost in (0, 1000):
        monkeypatch.setitem(crd_memory._GATHER_COST, "cpu", cost)
        loss, student = crd_of(CRDInstance), draw(3, 6).requires_grad_()
        torch.manual_seed(3)
        value = loss(student, draw(3, 9, seed=1), sample_ids=torch.tensor([5, 1, 30]))
        value.backward()
        results.append((value.detach(), student.grad))
    torch.testing.assert_close(*results)


def test_crd_keeps_what_it_divides_by_in_its_state():
    loss = crd_of(CRDInstance)
    call = partial(loss, draw(3, 6), draw(3, 9, seed=1), sample_ids=torch.tensor([5, 1, 30]))
    assert loss.contrast.scale_student < 0
    call()
    first = loss.contrast.scale_student.clone()
    call()
    assert loss.contrast.scale_student == first > 0
    assert "contrast.scale_student" in loss.state_dict()


def test_the_contrast_is_least_where_pairs_are_told_apart():
    apart, mixed = torch.tensor([[50.0, 1e-6, 1e-6]]), torch.tensor([[1.0, 1.0, 1.0]])
    assert contrast_loss(apart, samples=10) < 0.1 < contrast_loss(mixed, samples=10)


def test_the_alias_method_draws_with_the_given_weights():
    weights = torch.tensor([1.0, 0.0, 3.0, 0.5, 5.5])
    torch.manual_seed(0)
    drawn = AliasSampler(weights).draw(200, 500)
    assert drawn.shape == (200, 500)
    shares = torch.bincount(drawn.flatten(), minlength=5) / drawn.numel()
    torch.testing.assert_close(shares, weights / weights.sum(), rtol=0, atol=5e-3)


@pytest.mark.parametrize("samples", [1, 3, 49, 50000])
def test_even_weights_need_no_alias(samples):
    assert (AliasSampler(torch.ones(samples)).keep == 1).all()


def test_irg_needs_two_stages():
    features = (draw(2, 2, 4, 4), draw(2, 3))
    with pytest.raises(ValueError, match="tap two of each model"):
        IRG()(features, features)


def test_irg_takes_tokens_and_averages_channels_that_do_not_divide():
    tokens = draw(4, 5, 6), draw(4, 5, 6, seed=1), draw(4, 3)
    others = draw(4, 9, 8), draw(4, 9, 8, seed=1), draw(4, 3, seed=1)
    maps = (draw(4, 4, 6, 6), draw(4, 6, 3, 3), draw(4, 3))
    assert IRG()(tokens, others).isfinite()
    # Six channels to four: the windows are 0-1, 1-2, 3-4, 4-5.
    averaged = torch.stack([maps[1][:, [a, b]].mean(dim=1) for a, b in ((0, 1), (1, 2), (3, 4), (4, 5))], dim=1)
    way = (F.avg_pool2d(maps[0], 2) - averaged).square().sum(dim=(1, 2, 3))
    only_ways = IRG(vertex=0, edge=0, transformation=1)
    halves = torch.zeros(4, 4, 6, 6, dtype=torch.float64)
    halves[0], halves[1:] = 1.0, 0.5**0.5  # squared ways over their largest: 1, and one half thrice
    theirs = (halves, torch.zeros(4, 4, 3, 3, dtype=torch.float64), draw(4, 3))
    expected = (way / way.max() - torch.tensor([1.0, 0.5, 0.5, 0.5])).square().mean()
    torch.testing.assert_close(only_ways(maps, theirs), expected)


def test_a_different_number_of_taps_is_refused():
    with pytest.raises(ValueError, match="2 student taps and 1 teacher taps"):
        SP()((draw(2, 3), draw(2, 4)), draw(2, 3))


def test_a_series_of_fewer_than_no_terms_is_refused():
    with pytest.raises(ValueError, match="order must be 0 or more"):
        CC(order=-1)


def test_the_gram_matrix_has_derivatives_of_both_orders_in_batches_and_under_vmap():
    rows = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(gram, rows)
    assert torch.autograd.gradgradcheck(gram, rows)
    torch.testing.assert_close(gram(rows), torch.einsum("nid,njd->nij", rows, rows))
    torch.testing.assert_close(torch.vmap(gram)(rows), gram(rows))
