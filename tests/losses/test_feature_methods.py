"""The classic losses on features against rewrites in NumPy, and what each of them promises beside its value."""

import math
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CHECKS, Member
from torch import nn

from understudy.losses import (
    AB,
    AFD,
    AFDS,
    AT,
    FSP,
    FT,
    ICKD,
    KDSVD,
    NST,
    OFD,
    VID,
    FeatureRegression,
    FitNet,
)
from understudy.losses.ofd import margin_of_norm
from understudy.parity import features

# The same mathematics from the definitions.


def convolution(maps, weight, bias=None, *, transposed=False, **options):
    call = F.conv_transpose2d if transposed else F.conv2d
    return call(*(None if each is None else torch.tensor(each) for each in (maps, weight, bias)), **options).numpy()


def batch_norm(features, weights, prefix, *, statistics=None):
    axes = tuple(axis for axis in range(features.ndim) if axis != 1)
    spread = (-1,) + (1,) * (features.ndim - 2)
    mean, variance = statistics or (features.mean(axes), features.var(axes))
    scaled = (features - mean.reshape(spread)) / np.sqrt(variance.reshape(spread) + 1e-5)
    return scaled * weights[f"{prefix}.weight"].reshape(spread) + weights[f"{prefix}.bias"].reshape(spread)


def pooled(maps, size):
    return F.adaptive_avg_pool2d(torch.tensor(maps), size).numpy()


def unit(features, axis, epsilon=0.0):
    return features / (np.sqrt((features**2).sum(axis, keepdims=True)) + epsilon)


def taps_of(*sides):
    return zip(*(side if isinstance(side, tuple) else (side,) for side in sides), strict=True)


def regression(student, teacher, distance="mse"):
    if distance == "mse":
        return sum(((mine - theirs) ** 2).mean() for mine, theirs in taps_of(student, teacher))
    return sum(1 - (unit(mine, -1) * unit(theirs, -1)).sum(-1).mean() for mine, theirs in taps_of(student, teacher))


def fitnet(student, teacher, weights, relu=True, **options):
    total = 0
    for index, (mine, theirs) in enumerate(taps_of(student, teacher)):
        weight, bias = (weights[f"regressors.{index}.conv.{name}"] for name in ("weight", "bias"))
        mine = convolution(mine, weight, bias, **options) if mine.ndim == 4 else mine @ weight.T + bias
        mine = batch_norm(mine, weights, f"regressors.{index}.norm")
        total += ((np.maximum(mine, 0) if relu else mine) - theirs).__pow__(2).mean()
    return total


def at(student, teacher, p=2.0, size=None):
    total = 0
    for mine, theirs in taps_of(student, teacher):
        mine = mine if size is None else pooled(mine, size)
        maps = [unit((np.abs(each) ** p).mean(1).reshape(len(each), -1), 1) for each in (mine, theirs)]
        total += ((maps[0] - maps[1]) ** 2).mean()
    return total


def nst(student, teacher, size=None):
    total = 0
    for mine, theirs in taps_of(student, teacher):
        mine = mine if size is None else pooled(mine, size)
        s, t = (unit(each.reshape(*each.shape[:2], -1), 2) for each in (mine, theirs))
        # Every pair of channels, as the definition says.
        kernel = [((a[:, :, None] * b[:, None]).sum(-1) ** 2).mean() for a, b in ((t, t), (s, s), (s, t))]
        total += kernel[0] + kernel[1] - 2 * kernel[2]
    return total


def fsp(student, teacher):
    def flow(first, second):
        first = pooled(first, second.shape[-2:])
        return np.einsum("nihw,njhw->nij", first, second) / np.prod(second.shape[-2:])

    flows = [[flow(a, b) for a, b in pairwise(side)] for side in (student, teacher)]
    return sum(((a - b) ** 2).mean() for a, b in zip(*flows, strict=True))


def ft(student, teacher, weights, batch_norms=True):
    def encode(maps, prefix, *, running):
        for layer in (0, 3, 6):
            conv, norm = f"{prefix}.{layer}", f"{prefix}.{layer + 1}"
            maps = convolution(maps, weights[f"{conv}.weight"], weights.get(f"{conv}.bias"), padding=1)
            if batch_norms:
                statistics = weights[f"{norm}.running_mean"], weights[f"{norm}.running_var"]
                maps = batch_norm(maps, weights, norm, statistics=statistics if running else None)
            maps = np.where(maps > 0, maps, 0.1 * maps)
        return unit(maps.reshape(len(maps), -1), 1)

    mine, theirs = (
        encode(student, "translators.0.encoder", running=False),
        encode(teacher, "paraphrasers.0.encoder", running=True),
    )
    return np.abs(mine - theirs).mean()


def ab(student, teacher, weights, margin=1.0):
    total, count = 0, len(list(taps_of(student, teacher)))
    for index, (mine, theirs) in enumerate(taps_of(student, teacher)):
        if f"connectors.{index}.conv.weight" in weights:
            conv = f"connectors.{index}.conv"
            mine = convolution(mine, weights[f"{conv}.weight"], weights[f"{conv}.bias"])
            mine = batch_norm(mine, weights, f"connectors.{index}.norm")
        wrongly_on = (mine + margin) ** 2 * ((mine > -margin) & (theirs <= 0))
        wrongly_off = (mine - margin) ** 2 * ((mine <= margin) & (theirs > 0))
        total += 2.0 ** (index - count + 1) * (wrongly_on + wrongly_off).sum() / len(mine)
    return total


def ofd(student, teacher, weights):
    total, count = 0, len(list(taps_of(student, teacher)))
    for index, (mine, theirs) in enumerate(taps_of(student, teacher)):
        negative = (theirs < 0).sum((0, 2, 3), keepdims=True).astype(np.float32) + np.float32(1e-6)
        of_batch = np.minimum(theirs, 0).sum((0, 2, 3), keepdims=True) / negative
        margin = weights.get(f"margin_{index}", of_batch)
        mine = convolution(mine, weights[f"connectors.{index}.0.weight"])
        mine = batch_norm(mine, weights, f"connectors.{index}.1")
        target = np.maximum(pooled(theirs, mine.shape[-2:]), margin)
        counted = (mine > target) | (target > 0)
        total += 2.0 ** (index - count + 1) * ((mine - target) ** 2 * counted).sum() / len(mine)
    return total


def afd(student, teacher, weights):
    def projected(maps, prefix):
        vectors = maps.mean((2, 3)) if maps.ndim == 4 else maps
        vectors = vectors @ weights[f"{prefix}.linear.weight"].T + weights[f"{prefix}.linear.bias"]
        return batch_norm(vectors, weights, f"{prefix}.norm")

    weights = {key.removeprefix("attention."): array for key, array in weights.items()}
    queries = [projected(maps, f"queries.{index}") for index, maps in enumerate(teacher)]
    keys = np.stack([np.maximum(projected(maps, f"keys.{index}"), 0) for index, maps in enumerate(student)], axis=1)
    samples, dimension = len(keys), keys.shape[-1]
    bilinear = projected(keys.reshape(-1, dimension), "bilinear").reshape(samples, len(student), len(teacher), -1)
    total = 0
    for t, maps in enumerate(teacher):
        logits = np.einsum("nsd,nd->ns", bilinear[:, :, t], queries[t])
        logits = (logits + weights["teacher_positions"][t] @ weights["student_positions"].T) / math.sqrt(dimension)
        attention = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        target = unit((maps**2).mean(1).reshape(samples, -1), 1)
        for s, mine in enumerate(student):
            energy = unit(pooled((mine**2).mean(1)[:, None], maps.shape[-2:]).reshape(samples, -1), 1)
            total += (attention[:, s] * ((energy - target) ** 2).mean(1)).mean()
    return total


def afds(student, teacher, weights, size=None):
    hidden = convolution(teacher.mean((2, 3), keepdims=True), weights["attentions.0.0.weight"])
    hidden = np.maximum(hidden + weights["attentions.0.0.bias"][:, None, None], 0)
    scores = convolution(hidden, weights["attentions.0.2.weight"], weights["attentions.0.2.bias"])[..., 0, 0]
    share = 1 / (1 + np.exp(-scores))
    if "regressors.0.0.weight" in weights:
        student = batch_norm(convolution(student, weights["regressors.0.0.weight"]), weights, "regressors.0.1")
    teacher = teacher if size is None else pooled(teacher, size)
    mine, theirs = (unit(maps, (2, 3), 1e-6) for maps in (student, teacher))
    return (share / share.sum(1, keepdims=True) * ((mine - theirs) ** 2).mean((2, 3))).sum(1).mean()


def vid(student, teacher, weights, size=None, epsilon=1e-5):
    mean = student if size is None else pooled(student, size)
    for layer in (0, 2, 4):
        mean = convolution(
            mean if layer == 0 else np.maximum(mean, 0), weights[f"gaussians.0.regressor.{layer}.weight"]
        )
    variance = (np.log1p(np.exp(weights["gaussians.0.raw"])) + epsilon)[:, None, None]
    return 0.5 * (np.log(variance) + (mean - teacher) ** 2 / variance).mean()


def kdsvd(student, teacher, rank=1):
    def directions(mine, theirs):
        mine, theirs = (maps.reshape(*maps.shape[:2], -1).transpose(0, 2, 1) for maps in (mine, theirs))
        found = []
        for of_student, of_teacher in zip(mine, theirs, strict=True):
            _, values, target = np.linalg.svd(of_teacher, full_matrices=False)
            target = target[:rank].T
            target = target * np.where(target.sum(0) < 0, -1, 1)
            candidates = np.linalg.svd(of_student, full_matrices=False)[2][: rank + 3].T
            cosines = candidates.T @ target
            best = np.abs(cosines).argmax(0)
            signs = np.sign(cosines[best, range(rank)])
            strength = values[:rank] / np.linalg.norm(values[:rank])
            found.append((candidates[:, best] * signs * strength, target * strength))
        return [np.stack(side) for side in zip(*found, strict=True)]

    layers = [directions(*maps) for maps in zip(student, teacher, strict=True)]
    total = 0
    for before, after in pairwise(layers):
        flows = [np.exp(-((a[:, :, None] - b[:, None]) ** 2) / 8) for a, b in zip(after, before, strict=True)]
        total += ((flows[0] - flows[1]) ** 2).sum() / len(flows[0])
    return total


def ickd(student, teacher, weights):
    mine = batch_norm(convolution(student, weights["regressors.0.0.weight"]), weights, "regressors.0.1")
    grams = [unit(np.einsum("nihw,njhw->nij", maps, maps), 2) for maps in (mine, teacher)]
    return ((grams[0] - grams[1]) ** 2).sum() / len(mine) / teacher.shape[1]


def with_margins(loss, channels):
    norms = [nn.BatchNorm2d(count) for count in channels]
    generator = torch.Generator().manual_seed(3)
    for norm in norms:
        norm.weight.data.uniform_(-1.4, 1.4, generator=generator)
        norm.bias.data.uniform_(-0.5, 0.5, generator=generator)
    loss.margins_from(norms)
    return loss


def member(name, build, reference, shape=(3, 4, 5, 6), teacher_shape=None, **holds):
    """A loss that compares features, with a minimum at the teacher only where it is said."""
    holds = {"minimum_at_teacher": False, "layout_rtol": 1e-9} | holds
    return Member(name, build, reference, shape, teacher_shape, logits=False, **holds)


TWO, TWO_OF_TEACHER = ((3, 4, 6, 6), (3, 5, 3, 3)), ((3, 6, 6, 6), (3, 7, 3, 3))
LEAST = {"minimum_at_teacher": True}
MEMBERS = [
    member("feature", FeatureRegression, regression, TWO, **LEAST),
    member("feature-vectors", FeatureRegression, regression, (6, 5), **LEAST),
    member(
        "feature-cosine", partial(FeatureRegression, distance="cosine"), partial(regression, distance="cosine"), **LEAST
    ),
    member("fitnet-same-size", FitNet, fitnet, TWO, TWO_OF_TEACHER),
    member("fitnet-half", FitNet, partial(fitnet, stride=2, padding=1), (3, 4, 8, 6), (3, 5, 4, 3)),
    member("fitnet-twice", FitNet, partial(fitnet, transposed=True, stride=2, padding=1), (3, 4, 3, 2), (3, 5, 6, 4)),
    member("fitnet-smaller", FitNet, fitnet, (3, 4, 5, 6), (3, 5, 4, 3)),
    member("fitnet-linear", partial(FitNet, relu=False), partial(fitnet, relu=False), teacher_shape=(3, 5, 5, 6)),
    member("fitnet-vectors", FitNet, fitnet, (6, 5), (6, 7), batch_of_one=False),
    member("at", AT, at, **LEAST),
    member("at-layers", AT, at, TWO, TWO_OF_TEACHER),
    member("at-pooled", AT, partial(at, size=(4, 3)), (3, 4, 8, 6), (3, 7, 4, 3)),
    member("at-p=3", partial(AT, p=3.0), partial(at, p=3.0), **LEAST),
    member("nst", NST, nst, **LEAST),
    member("nst-few-places", NST, nst, (3, 9, 2, 3), **LEAST),
    member("nst-layers", NST, nst, TWO, TWO_OF_TEACHER),
    member("nst-pooled", NST, partial(nst, size=(4, 3)), (3, 4, 8, 6), (3, 7, 4, 3)),
    member("fsp", FSP, fsp, ((3, 4, 6, 6), (3, 5, 3, 3), (3, 3, 3, 3)), **LEAST),
    member("ft", FT, ft, teacher_shape=(3, 6, 5, 6)),
    member(
        "ft-no-norm",
        partial(FT, rate=0.9, batch_norm=False),
        partial(ft, batch_norms=False),
        teacher_shape=(3, 6, 5, 6),
    ),
    member("ab", AB, ab),
    member("ab-layers", partial(AB, margin=2.0), partial(ab, margin=2.0), TWO, ((3, 6, 6, 6), (3, 5, 3, 3))),
    member("ofd", OFD, ofd, TWO, TWO_OF_TEACHER, batch_of_one=False),
    member("ofd-norms", lambda: with_margins(OFD(), (6, 7)), ofd, TWO, TWO_OF_TEACHER),
    member("ofd-pooled", OFD, ofd, (3, 4, 3, 2), (3, 6, 6, 4), batch_of_one=False),
    member("afd", partial(AFD, dimension=6), afd, TWO, ((3, 4, 8, 8), (3, 7, 3, 3), (3, 9, 3, 3)), batch_of_one=False),
    member("afds", partial(AFDS, squeeze=1.5), afds, **LEAST),
    member("afds-wider", AFDS, partial(afds, size=(4, 3)), (3, 4, 4, 3), (3, 6, 8, 6)),
    member("vid", VID, vid, teacher_shape=(3, 5, 5, 6)),
    member(
        "vid-pooled",
        partial(VID, hidden=3, initial_variance=2.0),
        partial(vid, size=(4, 3)),
        (3, 4, 8, 6),
        (3, 7, 4, 3),
    ),
    member("kdsvd", KDSVD, kdsvd, ((3, 5, 5, 6), (3, 6, 3, 3)), **LEAST),
    member("kdsvd-rank-2", partial(KDSVD, rank=2), partial(kdsvd, rank=2), ((3, 5, 5, 6), (3, 6, 3, 3)), **LEAST),
    member("ickd", ICKD, ickd, (3, 4, 6, 6), (3, 5, 3, 3)),
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


# What else they promise


def maps(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ALL = [
    FeatureRegression(), FitNet(), AT(), NST(), FSP(), FT(), AB(), OFD(), AFD(), AFDS(), VID(), KDSVD(), ICKD(),
]  # fmt: skip


@pytest.mark.parametrize(
    "loss", [loss for loss in ALL if not isinstance(loss, AFD)], ids=lambda loss: type(loss).__name__
)
def test_as_many_taps_of_each_model_are_asked_for(loss):
    student, teacher = (maps(2, 3, 4, 4), maps(2, 3, 4, 4)), (maps(2, 3, 4, 4),)
    with pytest.raises(ValueError, match=r"taps|as many"):
        getattr(loss, "prepare", loss)(student, teacher)


@pytest.mark.parametrize("loss", [AT(), NST(), KDSVD(), FSP(), VID(), OFD(), FT(), ICKD(), AFD(), AFDS()])
def test_tokens_are_refused_where_maps_are_meant(loss):
    tokens = (maps(2, 5, 7), maps(2, 5, 7))
    with pytest.raises(ValueError, match=r"no maps \(N, C, H, W\)"):
        getattr(loss, "prepare", loss)(tokens, tokens)


def test_between_any_two_sizes_there_is_a_regressor():
    for size in ((7, 7), (3, 5), (40, 40)):
        student, teacher = maps(2, 3, 5, 5).float(), maps(2, 4, *size).float()
        for mine, theirs in ((student, teacher), (teacher, student)):
            loss = FitNet()
            loss.prepare(mine, theirs)
            assert loss(mine, theirs).isfinite()
            assert sum(weight.numel() for weight in loss.parameters()) < 1000


@pytest.mark.parametrize("name", ["paraphrasers", "translators"])
def test_the_two_stages_of_factor_transfer_train_one_part_each(name):
    student, teacher = maps(2, 4, 5, 5).float(), maps(2, 6, 5, 5).float()
    loss = FT()
    loss.prepare(student, teacher)
    value = loss.reconstruction(teacher) if name == "paraphrasers" else loss(student, teacher)
    value.backward()
    trained = {key.split(".")[0] for key, weight in loss.named_parameters() if weight.grad is not None}
    assert trained == {name}


def test_the_student_of_factor_transfer_does_not_move_the_paraphrasers_statistics():
    student, teacher = maps(2, 4, 5, 5).float(), maps(2, 6, 5, 5).float()
    loss = FT()
    loss.prepare(student, teacher)
    before = {key: buffer.clone() for key, buffer in loss.named_buffers() if key.startswith("paraphrasers")}
    loss.train()(student, teacher)
    assert all(torch.equal(loss.get_buffer(key), buffer) for key, buffer in before.items())
    loss.reconstruction(teacher)
    assert not all(torch.equal(loss.get_buffer(key), buffer) for key, buffer in before.items())


def test_margins_are_the_means_of_what_a_batch_norm_gives_below_zero():
    weight, bias = torch.tensor([1.0, -0.7, 0.4]), torch.tensor([0.2, -1.0, 0.5])
    values = bias + weight * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0))
    sampled = torch.stack([column[column < 0].mean() for column in values.T])
    torch.testing.assert_close(margin_of_norm(weight, bias).flatten(), sampled, rtol=0.02, atol=0)


def test_margins_of_norms_that_are_never_negative_or_constant_stay_finite():
    margins = margin_of_norm(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([9.0, 2.0, -2.0])).flatten()
    torch.testing.assert_close(margins, torch.tensor([-3.0, 0.0, -2.0]))


def test_margins_come_from_taps_that_end_in_a_batch_norm():
    norm = nn.BatchNorm2d(6)
    norm.bias.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(0))
    block = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(nn.ReLU(), norm))
    loss = OFD()
    loss.prepare((maps(2, 4, 3, 3).float(),) * 3, (maps(2, 6, 3, 3).float(),) * 3)
    loss.margins_from([block, nn.Sequential(norm, nn.ReLU()), norm])
    assert {name for name, _ in loss.named_buffers() if name.startswith("margin")} == {"margin_0", "margin_2"}
    torch.testing.assert_close(loss.margin_0, margin_of_norm(norm.weight, norm.bias))


def test_equally_strong_directions_have_a_finite_gradient():
    student = torch.zeros(2, 5, 4, 4, dtype=torch.float64)
    student[:, 0, 0, 0] = student[:, 1, 1, 1] = 1.0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(
        KDSVD()((student, student), (maps(2, 5, 4, 4), maps(2, 5, 3, 3, seed=1))), student
    )
    assert gradient.isfinite().all()


def test_attention_of_zeros_is_finite():
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    for loss in (AT(), NST(), AFDS()):
        if hasattr(loss, "prepare"):
            loss.prepare(student, student)
        (gradient,) = torch.autograd.grad(loss(student, maps(2, 3, 4, 4).float()), student)
        assert gradient.isfinite().all()


def test_flow_needs_two_taps():
    for loss in (FSP(), KDSVD()):
        with pytest.raises(ValueError, match="two or more"):
            loss(maps(2, 3, 4, 4), maps(2, 3, 4, 4))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VID(initial_variance=0.0), "initial_variance"),
        (lambda: FT(rate=0.0), "rate must be above 0"),
        (lambda: AFDS(squeeze=-1.0), "squeeze must be above 0"),
        (lambda: OFD(kernel_size=2), "must be odd"),
        (lambda: KDSVD(rank=0), "1 or more"),
    ],
)
def test_settings_without_a_meaning_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("p", [2, 3])
def test_with_an_odd_power_repdistiller_lets_signs_cancel(p):
    inputs = {"student_feat_0": maps(2, 3, 8, 8), "teacher_feat_0": maps(2, 5, 4, 4, seed=1)}
    ours, theirs = (compute(inputs, {"p": p}, {})["loss"].item() for compute in (features.at, features.at_signed))
    assert (ours == pytest.approx(theirs, rel=1e-9)) == (p == 2)
