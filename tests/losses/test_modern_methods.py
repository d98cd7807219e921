"""Distillation of maps and tokens since 2020, against the definitions in NumPy and plain torch."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conformance import CHECKS, Member
from torch import nn

from understudy.losses import (
    CATKD,
    CWD,
    FBKD,
    MGD,
    PKD,
    SRD,
    SRRL,
    ReviewKD,
    SemCKD,
    SimKD,
    ViTKD,
    VkD,
)
from understudy.losses.fbkd import NonLocal
from understudy.losses.reviewkd import hierarchical_context

# The same mathematics from the definitions: NumPy, and plain torch where there are convolutions.


def pairs_of(student, teacher):
    return list(zip(student, teacher, strict=True)) if isinstance(student, tuple) else [(student, teacher)]


def softmax(array, axis):
    exponentials = np.exp(array - array.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def standardized(maps, eps=1e-5):
    axes = (0, *range(2, maps.ndim))
    return (maps - maps.mean(axis=axes, keepdims=True)) / np.sqrt(maps.var(axis=axes, keepdims=True) + eps)


def cwd(student, teacher, *, temperature=4.0, softmax_over="positions", standardize=False):
    total = 0.0
    for ours, theirs in pairs_of(student, teacher):
        if standardize:
            ours, theirs = standardized(ours), standardized(theirs)
        samples, channels, height, width = ours.shape
        axis, count = (2, samples * channels) if softmax_over == "positions" else (1, samples * height * width)
        ours, theirs = (
            softmax(each.reshape(samples, channels, -1) / temperature, axis=axis) for each in (ours, theirs)
        )
        total += temperature**2 / count * (theirs * np.log(theirs / ours)).sum()
    return total


def pkd(student, teacher):
    total = 0.0
    for pair in pairs_of(student, teacher):
        ours, theirs = (each.swapaxes(0, 1).reshape(each.shape[1], -1) for each in pair)
        ours, theirs = (
            (each - each.mean(axis=1, keepdims=True)) / (each.std(axis=1, ddof=1, keepdims=True) + 1e-6)
            for each in (ours, theirs)
        )
        total += ((ours - theirs) ** 2).mean() / 2
    return total


def catkd(student, teacher, student_model, teacher_model, *, resolution=2, normalize=True, binarize=False, classes=0):
    def class_maps(features, model):
        weight, bias = (each.detach().double().numpy() for each in (model[-1].weight, model[-1].bias))
        return np.einsum("nchw,kc->nkhw", features, weight) + bias[:, None, None]

    student, teacher = class_maps(student, student_model), class_maps(teacher, teacher_model)
    samples, count = student.shape[:2]
    total = []
    for sample in range(samples):
        chosen = np.argsort(-teacher[sample].mean(axis=(1, 2)))[: classes or count]
        for each in chosen:
            ours, theirs = student[sample, each], teacher[sample, each]
            if binarize:
                theirs = (theirs > np.abs(theirs).mean()).astype(float)
            ours, theirs = (
                np.array([[part.mean() for part in np.array_split(row, resolution, axis=1)]
                          for row in np.array_split(full, resolution, axis=0)])
                for full in (ours, theirs)
            )  # fmt: skip
            if normalize:
                ours, theirs = (full / max(np.linalg.norm(full), 1e-12) for full in (ours, theirs))
            total.append((ours - theirs) ** 2)
    return np.mean(total)


def torched(function):
    """A rewrite in plain torch, which has convolutions."""

    def in_numpy(student, teacher, weights=None, **needs):
        def tensors(value):
            return tuple(map(torch.from_numpy, value)) if isinstance(value, tuple) else torch.from_numpy(value)

        weights = {name: torch.from_numpy(array) for name, array in (weights or {}).items()}
        return function(tensors(student), tensors(teacher), weights, **needs).item()

    return in_numpy


def conv(maps, weights, name, padding=0):
    return F.conv2d(maps, weights[f"{name}.weight"], weights.get(f"{name}.bias"), padding=padding)


def norm(maps, weights, name):
    dims = (0, 2, 3)
    centred = maps - maps.mean(dim=dims, keepdim=True)
    scaled = centred / (centred.square().mean(dim=dims, keepdim=True) + 1e-5).sqrt()
    return scaled * weights[f"{name}.weight"][:, None, None] + weights[f"{name}.bias"][:, None, None]


def smaller(maps, size):
    return F.adaptive_avg_pool2d(maps, size)


@torched
def mgd(student, teacher, weights, *, mask="positions", ratio=0.65, standardize=False):
    total = 0.0
    for tap, (ours, theirs) in enumerate(pairs_of(student, teacher)):
        if standardize:
            ours, theirs = (torch.from_numpy(standardized(each.numpy())) for each in (ours, theirs))
        if f"aligners.{tap}.weight" in weights:
            ours = conv(ours, weights, f"aligners.{tap}")
        samples, channels, height, width = ours.shape
        drawn = torch.rand((samples, 1, height, width) if mask == "positions" else (samples, channels, 1, 1))
        ours = torch.where(drawn > 1 - ratio, torch.zeros(()), ours)
        hidden = conv(ours, weights, f"generators.{tap}.0", padding=1).clamp(min=0)
        total = total + (conv(hidden, weights, f"generators.{tap}.2", padding=1) - theirs).square().sum() / samples
    return total


@torched
def simkd(student, teacher, weights):
    size = torch.Size(map(min, student.shape[2:], teacher.shape[2:]))
    maps = smaller(student, size)
    for index, padding in ((0, 0), (3, 1), (6, 0)):
        maps = conv(maps, weights, f"projector.1.{index}", padding=padding)
        maps = norm(maps, weights, f"projector.1.{index + 1}").clamp(min=0)
    return (maps - smaller(teacher, size)).square().mean()


@torched
def srrl(student, teacher, weights, *, teacher_head, features=1.0, logits=1.0):
    connected = norm(conv(student[0], weights, "connector.0"), weights, "connector.1").clamp(min=0).mean(dim=(2, 3))
    of_features = (connected - teacher[0].mean(dim=(2, 3))).square().mean()
    return features * of_features + logits * (teacher_head(connected) - teacher[1]).square().mean()


@torched
def reviewkd(student, teacher, weights):
    total, below = 0.0, None
    for depth, (ours, theirs) in enumerate(reversed(pairs_of(student, teacher))):
        ours, theirs = (each if each.ndim == 4 else each[:, :, None, None] for each in (ours, theirs))
        name = f"fusions.{depth}"
        fused = norm(conv(ours, weights, f"{name}.reduce.0"), weights, f"{name}.reduce.1")
        if below is not None:
            below = F.interpolate(below, ours.shape[2:], mode="nearest")
            attention = conv(torch.cat([fused, below], dim=1), weights, f"{name}.attend.0").sigmoid()
            fused = fused * attention[:, 0:1] + below * attention[:, 1:2]
        below = F.interpolate(fused, theirs.shape[2:], mode="nearest")
        output = norm(conv(below, weights, f"{name}.widen.0", padding=1), weights, f"{name}.widen.1")
        sides = [side for side in (4, 2, 1) if side < theirs.shape[2]]
        errors = [(output - theirs).square().mean()]
        errors += [(smaller(output, side) - smaller(theirs, side)).square().mean() for side in sides]
        shares = [0.5**index for index in range(len(errors))]
        total = total + sum(share * error for share, error in zip(shares, errors, strict=True)) / sum(shares)
    return total


@torched
def fbkd(student, teacher, weights):
    name, attention = "adapters.0", []
    for maps in (student, teacher):
        strength = maps.abs().mean(dim=1).flatten(1)
        attention.append((strength / 0.5).softmax(dim=1).view(len(maps), 1, *maps.shape[2:]) * strength.shape[1])
    mask = sum(attention) / 2
    features = (mask * (conv(student, weights, f"{name}.features") - teacher).square()).sum().sqrt()
    pooled = F.linear(student.mean(dim=(2, 3)), weights[f"{name}.channels.weight"], weights[f"{name}.channels.bias"])
    channels = (pooled - teacher.mean(dim=(2, 3))).norm()
    flat = conv(student.mean(dim=1, keepdim=True), weights, f"{name}.positions", padding=1)
    positions = (flat - teacher.mean(dim=1, keepdim=True)).norm()
    # The non-local blocks start as the identity; see the test of theirs.
    relations = (conv(student, weights, f"{name}.relations") - teacher).norm()
    return 7e-5 * features + 4e-3 * channels + 4e-3 * positions + 7e-5 * relations


@torched
def vitkd(student, teacher, weights):
    def aligned(index):
        tokens = student[index][:, 1:]
        if f"aligners.{index}.weight" not in weights:
            return tokens
        return F.linear(tokens, weights[f"aligners.{index}.weight"], weights[f"aligners.{index}.bias"])

    targets = [each[:, 1:] for each in teacher]
    imitation = sum((aligned(index) - targets[index]).square().sum() for index in range(2))
    tokens, target = aligned(2).clone(), targets[2]
    generation = 0.0
    masks = []
    for sample, draws in enumerate(torch.rand(tokens.shape[:2])):
        masks.append(draws.argsort()[len(draws) // 2 :])
        tokens[sample, masks[-1]] = weights["mask_token"][0, 0]
    grid = tokens.mT.reshape(len(tokens), -1, 3, 3)
    hidden = conv(grid, weights, "generator.0", padding=1).clamp(min=0)
    generated = conv(hidden, weights, "generator.2", padding=1).flatten(2).mT
    for sample, mask in enumerate(masks):
        generation = generation + (generated[sample, mask] - target[sample, mask]).square().sum()
    return (3e-5 * imitation + 3e-6 / 0.5 * generation) / len(tokens)


@torched
def semckd(student, teacher, weights):
    def embedded(maps, name):
        rows = maps.flatten(1)
        similarities = np.quantile((rows @ rows.T).numpy(), np.linspace(0, 1, 8), axis=1).T
        similarities = torch.from_numpy(similarities)
        hidden = F.linear(similarities, weights[f"{name}.0.weight"], weights[f"{name}.0.bias"]).clamp(min=0)
        out = F.linear(hidden, weights[f"{name}.2.weight"], weights[f"{name}.2.bias"])
        return out / out.norm(dim=1, keepdim=True)

    total = 0.0
    keys = torch.stack([embedded(theirs, f"keys.{index}") for index, theirs in enumerate(teacher)], dim=1)
    for i, ours in enumerate(student):
        query = embedded(ours, f"queries.{i}")
        attention = torch.einsum("nd,njd->nj", query, keys).softmax(dim=1)
        for j, theirs in enumerate(teacher):
            size = torch.Size(map(min, ours.shape[2:], theirs.shape[2:]))
            maps, name = smaller(ours, size), f"projections.{i}.{j}"
            for index, padding in ((0, 0), (3, 1)):
                maps = norm(conv(maps, weights, f"{name}.{index}", padding), weights, f"{name}.{index + 1}").clamp(
                    min=0
                )
            error = (conv(maps, weights, f"{name}.6") - smaller(theirs, size)).square().mean(dim=(1, 2, 3))
            total = total + (attention[:, j] * error).sum() / (len(ours) * len(student))
    return total


def srd(student, teacher, weights):
    ours, theirs = standardized(student @ weights["projector.weight"].T, 1e-4), standardized(teacher, 1e-4)
    return np.log((np.abs(ours - theirs) ** 4).sum())


class Remembered:
    """A loss whose projection is the product of a parametrisation: the rewrite takes it from the last one built."""

    def __init__(self, **options):
        self.options = options

    def build(self):
        self.loss = VkD(**self.options)
        return self.loss

    def reference(self, student, teacher, weights=None):
        projected = student @ self.loss.projector.weight.detach().double().numpy().T
        if self.options.get("normalize") == "whiten":
            centred = teacher - teacher.mean(axis=0)
            values, vectors = np.linalg.eigh(np.cov(centred.T))
            teacher = centred @ vectors @ np.diag((np.maximum(values, 0) + 1e-5 * values[-1]) ** -0.5) @ vectors.T
        else:
            centred = teacher - teacher.mean(axis=1, keepdims=True)
            teacher = centred / np.sqrt(teacher.var(axis=1, keepdims=True) + 1e-5)
        size = np.abs(projected - teacher)
        distance = self.options.get("distance", "smooth_l1")
        terms = {"smooth_l1": np.where(size < 1, size**2 / 2, size - 0.5), "l1": size, "mse": size**2}[distance]
        return terms.mean()


class Head(nn.Module):
    """The teacher's last layer, in the precision of what it is given."""

    def __init__(self, generator):
        super().__init__()
        self.weight = torch.randn(3, 6, generator=generator, dtype=torch.float64)

    def forward(self, rows):
        return rows @ self.weight.T.to(rows.dtype)


def head(generator, shape):
    return {"teacher_head": Head(generator)}


def classifiers(generator, shape, *, channels=(4, 4), same=True):
    """Two models that end in a linear layer; the same where student and teacher are to agree."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(width, 5)) for width in channels]
    return {"student_model": models[0], "teacher_model": models[0 if same else 1]}


feature = partial(Member, logits=False, shape=(3, 4, 6, 6))
# Convolutions and batch norm add up in another order in another memory layout.
seen = partial(feature, needs=classifiers)
learned = partial(feature, minimum_at_teacher=False, layout_rtol=1e-9)
TAPS = ((3, 4, 6, 6), (3, 2, 4, 4))
WIDER_TAPS = ((3, 6, 6, 6), (3, 2, 4, 4))
TOKENS, WIDER_TOKENS = ((2, 10, 4),) * 3, ((2, 10, 6), (2, 10, 4), (2, 10, 6))
vkd, vkd_l1, vkd_mse = Remembered(), Remembered(distance="l1"), Remembered(distance="mse", normalize="whiten")
embedding = partial(learned, shape=(6, 5), teacher_shape=(6, 7))
MEMBERS = [
    feature("cwd", CWD, cwd),
    feature("cwd-taps", partial(CWD, temperature=1.0), partial(cwd, temperature=1.0), shape=TAPS),
    feature("cwd-channels", partial(CWD, softmax_over="channels"), partial(cwd, softmax_over="channels")),
    feature("cwd-standardize", partial(CWD, standardize=True), partial(cwd, standardize=True)),
    feature("pkd", PKD, pkd),
    feature("pkd-taps", PKD, pkd, shape=TAPS),
    seen("catkd", CATKD, catkd),
    seen("catkd-fine", partial(CATKD, normalize=False, resolution=3), partial(catkd, normalize=False, resolution=3)),
    seen("catkd-binarize", partial(CATKD, binarize=True), partial(catkd, binarize=True), minimum_at_teacher=False),
    seen("catkd-classes", partial(CATKD, classes=2), partial(catkd, classes=2), minimum_at_teacher=False),
    seen(
        "catkd-wider", CATKD, catkd, minimum_at_teacher=False, teacher_shape=(3, 6, 6, 6),
        needs=partial(classifiers, channels=(4, 6), same=False),
    ),
    learned("mgd", MGD, mgd, shape=TAPS, teacher_shape=WIDER_TAPS, permutable=False),
    learned(
        "mgd-channels",
        partial(MGD, mask="channels", ratio=0.3),
        partial(mgd, mask="channels", ratio=0.3),
        teacher_shape=(3, 6, 6, 6),
        permutable=False,
    ),
    learned(
        "mgd-standardize",
        partial(MGD, standardize=True, align=False),
        partial(mgd, standardize=True),
        teacher_shape=(3, 6, 6, 6),
        permutable=False,
    ),
    learned("simkd", SimKD, simkd, teacher_shape=(3, 6, 3, 3)),
    learned("simkd-smaller", partial(SimKD, factor=3), simkd, teacher_shape=(3, 6, 8, 8)),
    learned(
        "srrl", partial(SRRL, logits=5.0), partial(srrl, logits=5.0), needs=head,
        shape=((3, 4, 6, 6), (3, 3)), teacher_shape=((3, 6, 4, 4), (3, 3)),
    ),
    # Of an embedding, batch norm needs two samples.
    learned(
        "reviewkd", partial(ReviewKD, width=5), reviewkd, batch_of_one=False,
        shape=((3, 4, 8, 8), (3, 6, 4, 4), (3, 7)), teacher_shape=((3, 5, 8, 8), (3, 4, 2, 2), (3, 6)),
    ),
    learned("fbkd", FBKD, fbkd, teacher_shape=(3, 6, 6, 6)),
    learned("vitkd", ViTKD, vitkd, shape=TOKENS, teacher_shape=WIDER_TOKENS, permutable=False),
    # The attention's quantiles have corners, and float32 finds others than float64 does.
    learned(
        "semckd", partial(SemCKD, quantiles=8), semckd,
        shape=TAPS, teacher_shape=((3, 3, 3, 3), (3, 5, 6, 6), (3, 2, 2, 2)),
    ),
    embedding("vkd", vkd.build, vkd.reference),
    embedding("vkd-l1", vkd_l1.build, vkd_l1.reference),
    embedding("vkd-whiten", vkd_mse.build, vkd_mse.reference, batch_of_one=False),
    embedding("srd", SRD, srd, batch_of_one=False),
]  # fmt: skip


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_conformance(member, check):
    check(member)


# What does not fit the table


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_the_channels_of_cwd_may_be_far_from_zero():
    student, teacher = (1e4 * draw(2, 3, 4, 4, seed=seed).sign() for seed in (0, 1))
    student.requires_grad_()
    value = CWD()(student, teacher)
    value.backward()
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_pkd_is_one_minus_the_correlation_and_knows_no_scale():
    student, teacher = draw(4, 3, 5, 5), draw(4, 3, 5, 5, seed=1)
    correlations = [
        np.corrcoef(student[:, channel].flatten(), teacher[:, channel].flatten())[0, 1] for channel in range(3)
    ]
    count = student[:, 0].numel()
    expected = (1 - np.mean(correlations)) * (count - 1) / count  # the deviation divides by n - 1, the mean by n
    assert PKD()(student, teacher).item() == pytest.approx(expected, rel=1e-4)
    assert PKD()(student, 100 * teacher + 7).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("resize", ["student", "teacher"])
def test_pkd_brings_sizes_together(resize):
    student, teacher = draw(2, 3, 4, 4), draw(2, 3, 8, 6, seed=1)
    ours, theirs = student, teacher
    if resize == "student":
        ours = F.interpolate(student, (8, 6), mode="bilinear", align_corners=False)
    else:
        theirs = F.interpolate(teacher, (4, 4), mode="bilinear", align_corners=False)
    assert PKD(resize=resize)(student, teacher) == PKD()(ours, theirs)


def test_mgd_masks_the_share_it_is_told():
    loss = MGD(ratio=0.65)
    student = torch.ones(50, 2, 20, 20)
    loss.prepare(student, student)
    kept = []
    loss.generators[0].register_forward_pre_hook(lambda module, inputs: kept.append(inputs[0]))
    loss(student, student)
    assert kept[0].mean().item() == pytest.approx(0.35, abs=0.01)
    assert torch.equal(kept[0][:, 0], kept[0][:, 1])


def test_all_that_a_prepared_loss_learns_gets_a_gradient():
    taps, wider = tuple(draw(*shape) for shape in TAPS), tuple(draw(*shape) for shape in WIDER_TAPS)
    for loss in (MGD(), ReviewKD(), SemCKD(quantiles=4), FBKD()):
        loss.prepare(taps, wider)
        before = [name for name, _ in loss.named_parameters()]
        loss(taps, wider).backward()
        assert not [name for name, parameter in loss.named_parameters() if parameter.grad is None]
        assert before == [name for name, _ in loss.named_parameters()]


def test_simkd_answers_with_the_teachers_layer():
    loss, head = SimKD(), nn.Linear(6, 5)
    student, teacher = draw(3, 4, 8, 8), draw(3, 6, 4, 4, seed=1)
    loss.prepare(student, teacher)
    predictor = loss.predictor(head).eval()
    expected = head(loss.eval().projector(student).mean(dim=(2, 3)))
    torch.testing.assert_close(predictor(student), expected)
    assert {id(parameter) for parameter in loss.parameters()} < {id(parameter) for parameter in predictor.parameters()}


def test_simkd_refuses_what_is_no_map():
    with pytest.raises(ValueError, match="no maps"):
        SimKD().prepare(draw(2, 5), draw(2, 6))


def test_the_context_is_compared_at_the_sizes_below_the_maps_own():
    student, teacher = draw(2, 3, 1, 1), draw(2, 3, 1, 1, seed=1)
    torch.testing.assert_close(hierarchical_context(student, teacher), F.mse_loss(student, teacher))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_non_local_block_is_attention_by_inner_products(stride):
    block, maps = NonLocal(6, reduction=2, stride=stride), draw(2, 6, 4, 4)
    torch.testing.assert_close(block(maps), maps)
    nn.init.normal_(block.out[1].weight)
    block.eval()
    query, key, value = block.query(maps).flatten(2), block.pool(block.key(maps)), block.pool(block.value(maps))
    attention = query.mT @ key.flatten(2) / key.flatten(2).shape[2]
    answer = (attention @ value.flatten(2).mT).mT.reshape(2, 3, 4, 4)
    torch.testing.assert_close(block(maps), maps + block.out(answer))


def test_vitkd_leaves_class_tokens_out():
    loss = ViTKD()
    tokens, more = tuple(draw(2, 9, 4, seed=seed) for seed in range(3)), []
    loss.prepare(tokens, tokens)
    for each in tokens:
        more.append(torch.cat([draw(2, 1, 4, seed=9), each], dim=1))
    values = []
    for each in (tokens, tuple(more)):
        torch.manual_seed(0)
        values.append(loss(each, tuple(2 * part for part in each)))
    torch.testing.assert_close(*values)
    with pytest.raises(ValueError, match="no square of patches"):
        loss(tuple(draw(2, 15, 4) for _ in range(3)), tokens)


def test_catkd_refuses_a_map_that_the_last_layer_does_not_read():
    model = nn.Sequential(nn.Linear(7, 5))
    with pytest.raises(ValueError, match="tap the one that is averaged"):
        CATKD()(draw(2, 3, 4, 4), draw(2, 3, 4, 4), student_model=model, teacher_model=model)


def test_catkds_class_maps_average_to_the_logits():
    from understudy.losses.catkd import _class_maps

    maps, model = draw(2, 3, 4, 4), nn.Linear(3, 5)
    torch.testing.assert_close(_class_maps(maps, model).mean(dim=(2, 3)), model(maps.mean(dim=(2, 3))))


@pytest.mark.parametrize("samples", [1, 3, 200])
def test_semckd_takes_any_batch(samples):
    loss = SemCKD()
    loss.prepare(draw(2, 3, 4, 4), draw(2, 5, 4, 4))
    assert loss(draw(samples, 3, 4, 4), draw(samples, 5, 4, 4, seed=1)).isfinite()


@pytest.mark.parametrize(("width", "wanted"), [(4, 7), (7, 4), (5, 5)])
def test_the_projection_of_vkd_stays_orthogonal_while_it_learns(width, wanted):
    loss = VkD()
    loss.prepare(draw(2, width), draw(2, wanted))
    optimizer = torch.optim.SGD(loss.parameters(), lr=1.0)
    before = loss.projector.weight.detach().clone()
    for seed in range(5):
        optimizer.zero_grad()
        loss(draw(8, width, seed=seed), draw(8, wanted, seed=seed + 10)).backward()
        optimizer.step()
    weight = loss.projector.weight.detach()
    assert (weight - before).abs().max() > 1e-3
    gram = weight @ weight.T if wanted <= width else weight.T @ weight
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [VkD, SRD])
def test_tokens_and_maps_are_averaged(kind):
    loss, tokens, maps = kind(), draw(4, 9, 5), draw(4, 6, 3, 3, seed=1)
    loss.prepare(tokens, maps)
    torch.testing.assert_close(loss(tokens, maps), loss(tokens.mean(dim=1), maps.mean(dim=(2, 3))))


def test_srd_is_finite_where_nothing_differs():
    loss, rows = SRD(), draw(4, 5)
    loss.prepare(rows, rows)
    nn.init.eye_(loss.projector.weight)
    rows.requires_grad_()
    value = loss(rows, rows.detach())
    value.backward()
    assert value.isfinite()
    assert rows.grad.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(CWD, temperature=0.0), "temperature must be above 0"),
        (partial(MGD, ratio=1.0), "ratio must lie in"),
        (partial(ViTKD, ratio=0.0), "ratio must lie between"),
    ],
)
def test_impossible_options_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
