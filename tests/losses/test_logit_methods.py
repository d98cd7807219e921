"""The losses on logits that came after Hinton's."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CHECKS, Member, class_labels, soft_labels

from understudy.losses import (
    CTKD,
    DIST,
    DKD,
    JSD,
    KD,
    MLKD,
    NKD,
    OFA,
    RLD,
    TTM,
    USKD,
    WSLD,
    CrossEntropy,
    ReverseKL,
    TotalVariation,
    VirtualTeacher,
)

# The same mathematics in NumPy, from the definitions: sample by sample, probabilities before logarithms.


def softmax(logits, temperature=1.0):
    scaled = logits / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def kl(p, q):
    return np.sum(p * np.log(p / q)) if len(p) else 0.0


def numbers(labels):
    return labels.argmax(axis=1) if labels.dtype.kind == "f" else labels


def standardized(logits):
    return (logits - logits.mean(axis=1, keepdims=True)) / (logits.std(axis=1, ddof=1, keepdims=True) + 1e-7)


def on_standardized(reference):
    return lambda student, teacher, **needs: reference(standardized(student), standardized(teacher), **needs)


def kd(student, teacher, *, temperature=4.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    return np.mean([temperature**2 * kl(a, b) for a, b in zip(p, q, strict=True)])


def reverse_kl(student, teacher, *, temperature=1.0):
    return kd(teacher, student, temperature=temperature)


def jsd(student, teacher, *, beta=0.5, temperature=1.0):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    m = beta * p + (1 - beta) * q
    return temperature**2 * (beta * kl(p, m) + (1 - beta) * kl(q, m)) / len(p)


def total_variation(student, teacher, *, temperature=1.0):
    return np.abs(softmax(teacher, temperature) - softmax(student, temperature)).sum() / 2 / len(student)


def dkd(student, teacher, labels, *, temperature=4.0, alpha=1.0, beta=8.0):
    losses = []
    for p, q, y in zip(softmax(teacher, temperature), softmax(student, temperature), numbers(labels), strict=True):
        rest, others = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        losses.append(temperature**2 * (alpha * target + beta * kl(rest, others)))
    return np.mean(losses)


def nkd(student, teacher, labels, *, temperature=1.0, gamma=1.5):
    losses = []
    for own, theirs, y in zip(student, teacher, numbers(labels), strict=True):
        q = softmax(np.delete(own, y)[None], temperature)[0]
        p = softmax(np.delete(theirs, y)[None], temperature)[0]
        target = softmax(theirs[None])[0, y] * np.log(softmax(own[None])[0, y])
        losses.append(-target - gamma * temperature**2 * np.sum(p * np.log(q)))
    return np.mean(losses)


def dist(student, teacher, *, beta=1.0, gamma=1.0, temperature=1.0):
    if student.ndim == 4:
        student, teacher = (
            np.concatenate([image.reshape(len(image), -1).T for image in x]) for x in (student, teacher)
        )
    p, q = softmax(teacher, temperature), softmax(student, temperature)

    def correlation(a, b):
        a, b = a - a.mean(), b - b.mean()
        return a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8)

    rows = np.mean([correlation(a, b) for a, b in zip(p, q, strict=True)])
    columns = np.mean([correlation(a, b) for a, b in zip(p.T, q.T, strict=True)])
    return temperature**2 * (beta * (1 - rows) + gamma * (1 - columns))


def wsld(student, teacher, labels, *, temperature=2.0):
    targets = labels if labels.dtype.kind == "f" else np.eye(student.shape[1])[labels]
    of_student, of_teacher = (-(targets * np.log(softmax(logits))).sum(axis=1) for logits in (student, teacher))
    weight = 1 - np.exp(-of_student / (of_teacher + 1e-7))
    soft = -(softmax(teacher, temperature) * np.log(softmax(student, temperature))).sum(axis=1)
    return temperature**2 * np.mean(weight * soft)


def gram_terms(student, teacher, temperature):
    p, q = softmax(teacher, temperature), softmax(student, temperature)
    classes = np.sum((p.T @ p - q.T @ q) ** 2) / p.shape[1]
    return classes, np.sum((p @ p.T - q @ q.T) ** 2) / len(p)


def mlkd(student, teacher, *, temperatures=(4.0, 3.0, 5.0, 2.0, 6.0), standardize=False):
    views = zip(student, teacher, strict=True) if isinstance(student, tuple) else [(student, teacher)]
    of_samples = on_standardized(kd) if standardize else kd
    return sum(
        of_samples(own, theirs, temperature=t) + sum(gram_terms(own, theirs, t))
        for own, theirs in views
        for t in temperatures
    )


def mlkd_released(student, teacher):
    (weak, strong), (teacher_weak, teacher_strong) = student, teacher
    probabilities = softmax(teacher_weak)
    confidence, of_class = probabilities.max(axis=1), probabilities.sum(axis=0)
    mask, class_mask = confidence <= np.percentile(confidence, 50), of_class <= np.percentile(of_class, 50)
    total = sum(kd(strong, teacher_strong, temperature=t) for t in (4, 3, 5))
    total += sum(kd(weak, teacher_weak, temperature=t) for t in (2, 6))
    for t in (4, 3, 5, 2, 6):
        classes, batch = gram_terms(weak, teacher_weak, t)
        total += np.mean(kd(weak, teacher_weak, temperature=t) * mask)
        total += np.mean(classes * class_mask) + np.mean(batch * mask)
    return total


def ctkd(student, teacher, *, epoch, weights):
    parameter = weights.get("learned.parameter")
    if parameter is None:
        p, q = softmax(teacher), softmax(student)
        order = np.argsort(-p, axis=1)
        x = np.concatenate([np.take_along_axis(p, order, 1), np.take_along_axis(q, order, 1)], axis=1)
        x = x @ weights["learned.layers.0.weight"].T + weights["learned.layers.0.bias"]
        x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
        x = np.maximum(x * weights["learned.layers.1.weight"] + weights["learned.layers.1.bias"], 0)
        parameter = x @ weights["learned.layers.3.weight"].T + weights["learned.layers.3.bias"]
    temperatures = np.broadcast_to(1 + 20 / (1 + np.exp(-parameter)), (len(student), 1))
    pairs = zip(student, teacher, temperatures[:, 0], strict=True)
    return np.mean([kd(own[None], theirs[None], temperature=t) for own, theirs, t in pairs])


def ttm(student, teacher, *, exponent=0.1, weighted=False):
    powers = softmax(teacher) ** exponent
    sums = powers.sum(axis=1, keepdims=True)
    terms = powers / sums * np.log(powers / sums / softmax(student))
    return np.mean((terms * sums if weighted else terms).sum(axis=1))


def virtual_teacher(student, teacher, labels, *, correct=0.99, temperature=20.0, variant="paper"):
    classes = student.shape[1]
    u = np.full(student.shape, (1 - correct) / (classes - 1))
    u[np.arange(len(u)), numbers(labels)] = correct
    if variant == "paper":
        return kd(student, np.log(u), temperature=temperature)
    return np.mean([kl(p, q) for p, q in zip(softmax(u / temperature), softmax(student), strict=True)])


def rld(student, teacher, labels, *, temperature=4.0, confidence_temperature=1.0, alpha=1.0, beta=8.0):
    losses = []
    for own, theirs, y in zip(student, teacher, numbers(labels), strict=True):
        p = softmax(theirs[None], confidence_temperature)[0].max()
        q = softmax(own[None], confidence_temperature)[0, y]
        confidence = confidence_temperature**2 * kl(np.array([p, 1 - p]), np.array([q, 1 - q]))
        kept = theirs < theirs[y]
        below = temperature**2 * kd(own[kept][None], theirs[kept][None], temperature=temperature) if kept.any() else 0
        losses.append(alpha * confidence + beta * below / temperature**2)
    return np.mean(losses)


def uskd(student, teacher, labels, *, weights, alpha=1.0, beta=0.1, mu=0.005):
    feature, logits = student
    weak = feature.reshape(*feature.shape[:2], -1).mean(axis=2) @ weights["head.weight"].T + weights["head.bias"]
    p, w, samples, classes = softmax(logits), softmax(weak), *logits.shape
    of_target = p[np.arange(samples), labels]
    total = 0.0
    for i, y in enumerate(labels):
        total -= alpha * (of_target[i] ** 2 + 1 - np.mean(of_target**2)) * np.log(of_target[i])
        q, v = np.delete(p[i], y) / (1 - p[i, y]), np.delete(w[i], y) / (1 - w[i, y])
        zipf = np.zeros(classes - 1)
        zipf[np.argsort(-(q + v))] = 1 / np.arange(1, classes)
        total -= beta * np.sum(zipf / zipf.sum() * np.log(q))
        total -= mu * np.sum((0.9 * np.eye(classes)[y] + 0.1 / classes) * np.log(w[i]))
    return total / samples


def ofa(student, teacher, labels, *, weights, epsilon=1.0, temperature=1.0):
    *features, logits = student
    predictions = [logits]
    for place, feature in enumerate(features):
        # Maps of one size: a 1x1 convolution, the mean over places and a projection are all linear.
        weight = {name.split(".", 2)[2]: array for name, array in weights.items() if name.startswith(f"heads.{place}.")}
        if feature.ndim == 4:
            mean = feature.mean(axis=(2, 3)) @ weight["0.weight"][:, :, 0, 0].T + weight["0.bias"]
            predictions.append(mean @ weight["3.weight"].T + weight["3.bias"])
        else:
            predictions.append(feature @ weight["0.weight"].T + weight["0.bias"])
    one_hot = np.eye(teacher.shape[1])[numbers(labels)]
    targets = (softmax(teacher, temperature) + one_hot) ** epsilon - one_hot
    return -sum((targets * np.log(softmax(each, temperature))).sum() for each in predictions) / len(logits)


def five_classes(generator, shape):
    return {"labels": torch.randint(5, (shape[0],), generator=generator)}


def third_epoch(generator, shape):
    return {"epoch": 2}


VIEWS = ((6, 5), (6, 5))
MEMBERS = [
    Member("reverse-kl", ReverseKL, reverse_kl),
    Member("reverse-kl-soft", partial(ReverseKL, temperature=3.0), partial(reverse_kl, temperature=3.0)),
    Member("jsd", JSD, jsd),
    Member("jsd-0.9", partial(JSD, beta=0.9, temperature=2.0), partial(jsd, beta=0.9, temperature=2.0)),
    Member("tv", TotalVariation, total_variation),
    Member("tv-soft", partial(TotalVariation, temperature=2.0), partial(total_variation, temperature=2.0)),
    Member("lskd", partial(KD, temperature=2.0, standardize=True), partial(on_standardized(kd), temperature=2.0)),
    Member("dkd", DKD, dkd, needs=class_labels),
    Member("dkd-soft-labels", DKD, dkd, needs=soft_labels),
    Member(
        "dkd-weights",
        partial(DKD, temperature=1.5, alpha=0.3, beta=2.0),
        partial(dkd, temperature=1.5, alpha=0.3, beta=2.0),
        needs=class_labels,
    ),
    Member("dkd-lskd", partial(DKD, standardize=True), on_standardized(dkd), needs=class_labels),
    # The label's term draws the student beyond the teacher.
    Member("nkd", NKD, nkd, needs=class_labels, minimum_at_teacher=False),
    Member(
        "nkd-soft",
        partial(NKD, temperature=2.0, gamma=0.5),
        partial(nkd, temperature=2.0, gamma=0.5),
        needs=soft_labels,
        minimum_at_teacher=False,
    ),
    # Least up to the 1e-8 in the denominator: see below.
    Member("dist", DIST, dist, maps=True, minimum_at_teacher=False),
    Member(
        "dist-weights",
        partial(DIST, beta=2.0, gamma=0.5, temperature=4.0),
        partial(dist, beta=2.0, gamma=0.5, temperature=4.0),
        minimum_at_teacher=False,
    ),
    Member("wsld", WSLD, wsld, needs=class_labels, minimum_at_teacher=False, stops_gradient=True),
    Member(
        "wsld-soft-labels",
        partial(WSLD, temperature=4.0),
        partial(wsld, temperature=4.0),
        needs=soft_labels,
        minimum_at_teacher=False,
        stops_gradient=True,
    ),
    Member("mlkd", MLKD, mlkd),
    Member("mlkd-more-classes-than-samples", MLKD, mlkd, shape=(4, 7)),
    Member("mlkd-views", partial(MLKD, temperatures=(1.5, 4.0)), partial(mlkd, temperatures=(1.5, 4.0)), shape=VIEWS),
    Member("mlkd-lskd", partial(MLKD, standardize=True), partial(mlkd, standardize=True)),
    Member("mlkd-release", partial(MLKD, variant="release"), mlkd_released, shape=VIEWS),
    Member("ctkd", CTKD, ctkd, needs=third_epoch),
    Member(
        "ctkd-instance",
        partial(CTKD, temperature="instance", width=8),
        ctkd,
        needs=third_epoch,
        batch_of_one=False,  # it has a batch norm
    ),
    Member("ttm", TTM, ttm, minimum_at_teacher=False),
    Member("ttm-1", partial(TTM, exponent=1.0), partial(ttm, exponent=1.0)),
    Member(
        "wttm",
        partial(TTM, exponent=0.3, weighted=True),
        partial(ttm, exponent=0.3, weighted=True),
        minimum_at_teacher=False,
    ),
    Member("tfkd", VirtualTeacher, virtual_teacher, needs=class_labels, teacher=False),
    Member(
        "tfkd-release",
        partial(VirtualTeacher, correct=0.9, variant="release"),
        partial(virtual_teacher, correct=0.9, variant="release"),
        needs=soft_labels,
        teacher=False,
    ),
    # Not 0 where the teacher errs.
    Member("rld", RLD, rld, needs=class_labels, minimum_at_teacher=False),
    Member(
        "rld-weights",
        partial(RLD, temperature=2.0, confidence_temperature=3.0, alpha=0.5, beta=1.5),
        partial(rld, temperature=2.0, confidence_temperature=3.0, alpha=0.5, beta=1.5),
        needs=soft_labels,
        minimum_at_teacher=False,
    ),
    Member(
        "rld-lskd", partial(RLD, standardize=True), on_standardized(rld), needs=class_labels, minimum_at_teacher=False
    ),
    Member("uskd", USKD, uskd, shape=((6, 3, 2, 2), (6, 5)), needs=five_classes, teacher=False, stops_gradient=True),
    Member(
        "ofa",
        OFA,
        ofa,
        shape=((6, 4), (6, 3, 2, 2), (6, 4, 2, 2), (6, 5)),
        teacher_shape=(6, 5),
        needs=five_classes,
        minimum_at_teacher=False,
    ),
    Member(
        "ofa-epsilon",
        partial(OFA, epsilon=1.5, temperature=2.0),
        partial(ofa, epsilon=1.5, temperature=2.0),
        shape=((6, 4), (6, 5)),
        teacher_shape=(6, 5),
        needs=five_classes,
        minimum_at_teacher=False,
    ),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


def draw(*shape, seed=0, scale=2.0):
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient_of(loss, student, *arguments, **needs):
    student = student.clone().requires_grad_()
    return torch.autograd.grad(loss(student, *arguments, **needs), student)[0]


LABELS = torch.tensor([0, 3, 1, 4, 2, 0])

# DKD


def test_dkd_with_the_teachers_own_weight_is_hintons_loss():
    student, teacher, labels = draw(1, 5), draw(1, 5, seed=1), torch.tensor([2])
    beta = 1 - (teacher / 4).softmax(dim=1)[0, 2].item()
    torch.testing.assert_close(
        DKD(beta=beta)(student, teacher, labels=labels), KD()(student, teacher), rtol=1e-12, atol=0
    )


def test_dkd_keeps_the_other_classes_of_a_teacher_whose_target_rounds_to_1():
    student, teacher = draw(6, 5, scale=1.0), draw(6, 5, seed=1, scale=1.0)
    for logits in (student, teacher):
        logits[torch.arange(6), LABELS] += 25
    exact = gradient_of(DKD(temperature=1.0), student, teacher, labels=LABELS)
    assert (teacher.float().softmax(dim=1).amax(dim=1) == 1).all()
    ours = gradient_of(DKD(temperature=1.0), student.float(), teacher.float(), labels=LABELS)
    torch.testing.assert_close(ours.double(), exact, rtol=1e-4, atol=1e-6)


# LSKD


def test_standardisation_takes_out_scale_and_shift():
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    for loss, needs in ((KD(standardize=True), {}), (DKD(standardize=True), {"labels": LABELS})):
        changed = loss(3 * student + 7, 0.2 * teacher - 1, **needs)
        torch.testing.assert_close(changed, loss(student, teacher, **needs), rtol=1e-5, atol=0)


# Other divergences


def test_jsd_tends_to_both_directions_of_the_divergence():
    student, teacher = draw(6, 5, scale=1.0), draw(6, 5, seed=1, scale=1.0)
    forward, reverse = KD(temperature=1.0)(student, teacher), ReverseKL()(student, teacher)
    torch.testing.assert_close(JSD(beta=1e-5)(student, teacher) / 1e-5, forward, rtol=1e-3, atol=0)
    torch.testing.assert_close(JSD(beta=1 - 1e-5)(student, teacher) / 1e-5, reverse, rtol=1e-3, atol=0)


def test_jsd_and_total_variation_are_bounded_where_no_class_is_shared():
    student, teacher = torch.tensor([[1e4, 0.0]]), torch.tensor([[0.0, 1e4]])
    assert JSD()(student, teacher).item() == pytest.approx(np.log(2))
    assert TotalVariation()(student, teacher).item() == pytest.approx(1)


# DIST


def test_dist_is_least_where_the_student_equals_the_teacher():
    teacher = draw(6, 5)
    least = DIST()(teacher, teacher)
    assert 0 <= least < 1e-5
    assert gradient_of(DIST(), teacher, teacher).abs().max() < 1e-5
    assert all(DIST()(teacher + 0.1 * draw(6, 5, seed=seed), teacher) > least + 1e-5 for seed in range(1, 6))


def test_dist_asks_for_proportions_not_values():
    teacher = draw(6, 5)
    # Half of the teacher's probabilities, the rest spread evenly: a linear function of them.
    student = (0.5 * teacher.softmax(dim=1) + 0.1).log()
    assert DIST()(student, teacher) < 1e-5
    assert KD(temperature=1.0)(student, teacher) > 0.01


# WSLD


def test_wslds_weight_has_no_gradient():
    student, teacher = draw(6, 5).requires_grad_(), draw(6, 5, seed=1)
    ratio = F.cross_entropy(student.detach(), LABELS, reduction="none") / (
        F.cross_entropy(teacher, LABELS, reduction="none") + 1e-7
    )
    soft = -(4.0 * (teacher / 2).softmax(dim=1) * (student / 2).log_softmax(dim=1)).sum(dim=1)
    (expected,) = torch.autograd.grad(((1 - torch.exp(-ratio)) * soft).mean(), student)
    torch.testing.assert_close(
        gradient_of(WSLD(), student.detach(), teacher, labels=LABELS), expected, rtol=1e-12, atol=1e-15
    )


def test_what_the_student_knows_for_certain_has_no_weight():
    student = torch.tensor([[1e4, 0.0, 0.0]])
    assert WSLD()(student, torch.tensor([[1.0, 2.0, 0.0]]), labels=torch.tensor([0])) == 0


# MLKD


def test_the_views_of_mlkd_add_up():
    weak, strong, teacher_weak, teacher_strong = (draw(6, 5, seed=seed) for seed in range(4))
    both = MLKD()((weak, strong), (teacher_weak, teacher_strong))
    torch.testing.assert_close(both, MLKD()(weak, teacher_weak) + MLKD()(strong, teacher_strong), rtol=1e-12, atol=0)


def test_mlkd_as_released_wants_two_views():
    with pytest.raises(ValueError, match=r"two views, \(weak, strong\)"):
        MLKD(variant="release")(draw(6, 5), draw(6, 5))


# CTKD


@pytest.fixture
def ctkd_of():
    def make(**options):
        loss = CTKD(**options)
        loss.prepare(torch.zeros(6, 5), torch.zeros(6, 5))
        return loss.double()

    return make


def test_the_temperature_climbs_where_the_student_descends(ctkd_of):
    student, teacher, loss = draw(6, 5), draw(6, 5, seed=1), ctkd_of(epochs=4)
    (parameter,) = loss.parameters()
    value = parameter.detach().clone().requires_grad_()
    temperature = 1 + 20 * torch.sigmoid(value)
    p, q = ((logits / temperature).log_softmax(dim=1) for logits in (teacher, student))
    (uphill,) = torch.autograd.grad((p.exp() * (p - q)).sum() / 6 * temperature.squeeze() ** 2, value)
    strengths = []
    for epoch in range(6):
        (gradient,) = torch.autograd.grad(loss(student, teacher, epoch=epoch), parameter)
        strengths.append((-gradient / uphill).item())
    cosine = [(1 - np.cos(np.pi * share)) / 2 for share in (0.25, 0.5, 0.75, 1, 1, 1)]
    np.testing.assert_allclose(strengths, cosine, rtol=1e-10)


def test_the_instance_network_gives_each_sample_a_temperature(ctkd_of):
    student, teacher, loss = draw(6, 5), draw(6, 5, seed=1), ctkd_of(temperature="instance", width=8)
    for number, parameter in enumerate(loss.parameters()):
        parameter.data = draw(*parameter.shape, seed=number, scale=1.0)
    weights = {name: tensor.numpy() for name, tensor in loss.state_dict().items()}
    expected = ctkd(student.numpy(), teacher.numpy(), epoch=0, weights=weights)
    assert loss(student, teacher, epoch=0).item() == pytest.approx(expected, rel=1e-12)
    loss(student, teacher, epoch=9).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_the_students_gradient_does_not_pass_through_the_temperature(ctkd_of):
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    expected = gradient_of(KD(temperature=(1 + 20 * torch.sigmoid(torch.ones(())).item())), student, teacher)
    torch.testing.assert_close(gradient_of(ctkd_of(), student, teacher, epoch=3), expected, rtol=1e-6, atol=0)


# RLD


def test_a_class_wrongly_above_the_label_is_not_imitated():
    teacher = torch.tensor([[5.0, 2.0, 1.0, 0.0]])
    gradient = gradient_of(RLD(alpha=0.0), torch.tensor([[0.0, 0.0, 0.0, 1.0]]), teacher, labels=torch.tensor([1]))
    assert (gradient[0, :2] == 0).all()
    assert (gradient[0, 2:] != 0).all()


def test_a_label_below_all_classes_leaves_only_the_confidence():
    student, teacher, labels = draw(2, 4), torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 2), torch.tensor([3, 3])
    value = RLD()(student, teacher.double(), labels=labels)
    assert value == RLD(beta=0.0)(student, teacher.double(), labels=labels)
    assert gradient_of(RLD(), student, teacher.double(), labels=labels).isfinite().all()


# Teacher-free


def test_the_virtual_teacher_at_temperature_1_is_label_smoothing():
    student, classes = draw(6, 5), 5
    smoothing = 0.2
    loss = VirtualTeacher(correct=1 - smoothing + smoothing / classes, temperature=1.0)
    smoothed = CrossEntropy(label_smoothing=smoothing)
    expected = gradient_of(smoothed, student, labels=LABELS)
    torch.testing.assert_close(gradient_of(loss, student, labels=LABELS), expected, rtol=1e-12, atol=1e-15)


def test_uskds_own_labels_have_no_gradient():
    feature, logits = draw(6, 3), draw(6, 5, seed=1).requires_grad_()
    loss = USKD()
    torch.manual_seed(0)
    loss.prepare((feature, logits))
    loss.double()
    (ours,) = torch.autograd.grad(loss((feature, logits), labels=LABELS), logits)
    weak = F.linear(feature, *loss.state_dict().values())
    # The same with the labels it makes held fixed: both are cross entropies of the softmax they are for.
    with torch.no_grad():
        p = logits.softmax(dim=1)
        own = p.gather(1, LABELS[:, None])
        target = own**2 + 1 - (own**2).mean()
        one_hot = F.one_hot(LABELS, 5).double()
        expected = target * (p - one_hot)
        q, w = ((x.softmax(dim=1) * (1 - one_hot)) for x in (logits, weak))
        q, w = q / q.sum(dim=1, keepdim=True), w / w.sum(dim=1, keepdim=True)
        ranks = ((q + w)[:, :, None] <= (q + w)[:, None, :]).sum(dim=2)
        zipf = (1 - one_hot) / ranks
        expected += 0.1 * (q - zipf / zipf.sum(dim=1, keepdim=True))
    torch.testing.assert_close(ours, expected / 6, rtol=1e-10, atol=1e-12)


# OFA


def test_ofa_with_exponent_1_adds_the_label_to_nothing():
    student, teacher = draw(6, 5), draw(6, 5, seed=1)
    loss = OFA()
    loss.prepare((student,), teacher)
    expected = KD(temperature=1.0, cross_entropy=True)(student, teacher)
    torch.testing.assert_close(loss((student,), teacher, labels=LABELS), expected, rtol=1e-12, atol=0)


def separable(maps, weights, prefix, stride):
    for place, step in ((0, stride), (4, 1)):
        depthwise, pointwise = weights[f"{prefix}.{place}.weight"], weights[f"{prefix}.{place + 1}.weight"]
        maps = F.conv2d(F.conv2d(maps, depthwise, stride=step, padding=1, groups=len(depthwise)), pointwise)
        maps = F.batch_norm(maps, None, None, training=True).relu()
    return maps


def test_ofas_heads_halve_maps_down_to_the_last_stages_size():
    maps, last, logits, teacher = draw(6, 3, 8, 8), draw(6, 10, 2, 2), draw(6, 5), draw(6, 5, seed=1)
    loss = OFA()
    loss.prepare((maps.float(), last.float(), logits.float()), teacher.float())
    loss.double()
    weights = loss.state_dict()
    assert weights["heads.0.0.4.weight"].shape == (3, 1, 3, 3)
    assert weights["heads.0.1.5.weight"].shape == (10, 6, 1, 1)
    halved = separable(separable(maps, weights, "heads.0.0", 2), weights, "heads.0.1", 2)
    assert halved.shape == (6, 10, 2, 2)
    predictions = [
        F.linear(halved.mean(dim=(2, 3)), weights["heads.0.4.weight"], weights["heads.0.4.bias"]),
        F.linear(
            F.conv2d(last, weights["heads.1.0.weight"], weights["heads.1.0.bias"]).mean(dim=(2, 3)),
            weights["heads.1.3.weight"],
            weights["heads.1.3.bias"],
        ),
        logits,
    ]
    expected = sum(KD(temperature=1.0, cross_entropy=True)(each, teacher) for each in predictions)
    torch.testing.assert_close(loss((maps, last, logits), teacher, labels=LABELS), expected, rtol=1e-10, atol=0)


def test_ofa_takes_the_tokens_of_a_transformer():
    tokens, logits, teacher = draw(6, 7, 6).requires_grad_(), draw(6, 5), draw(6, 5, seed=1)
    loss = OFA()
    loss.prepare((tokens.float(), tokens.float(), logits.float()), teacher.float())
    loss.double()
    value = loss((tokens, tokens, logits), teacher, labels=LABELS)
    value.backward()
    assert tokens.grad is not None
    assert all(parameter.grad is not None for parameter in loss.parameters())
    shuffled = tokens[:, torch.randperm(7, generator=torch.Generator().manual_seed(0))]
    torch.testing.assert_close(loss((shuffled, shuffled, logits), teacher, labels=LABELS), value, rtol=1e-10, atol=0)


# Refusals


@pytest.mark.parametrize(
    "loss", [ReverseKL(), JSD(), TotalVariation(), DKD(), NKD(), DIST(), WSLD(), MLKD(), TTM(), RLD()], ids=str
)
def test_other_classes_than_the_teachers_are_refused_not_broadcast(loss):
    needs = {"labels": torch.zeros(4, dtype=torch.long)} if isinstance(loss, (DKD, NKD, WSLD, RLD)) else {}
    with pytest.raises(ValueError, match="differ in shape"):
        loss(torch.zeros(4, 1), torch.zeros(4, 5), **needs)


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        *(
            (kind, {"temperature": 0.0}, "temperatures? must be above 0")
            for kind in (ReverseKL, JSD, TotalVariation, DKD, NKD, DIST, WSLD, RLD, VirtualTeacher, OFA)
        ),
        (RLD, {"confidence_temperature": -1.0}, "confidence_temperature must be above 0"),
        (MLKD, {"temperatures": (4.0, 0.0)}, "temperatures must be above 0"),
        (MLKD, {"temperatures": ()}, "temperatures must be above 0"),
        (JSD, {"beta": 1.0}, "beta must lie between 0 and 1"),
        (TTM, {"exponent": 0.0}, "exponent must be above 0"),
        (VirtualTeacher, {"correct": 1.0}, "correct must lie between 0 and 1"),
        (CTKD, {"lowest": 0.0}, "lowest temperature must be above 0"),
    ],
)
def test_settings_without_meaning_are_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)
