"""Views depend on nothing but their keys, follow the intended distributions, and agree with torchvision."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import functional as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as v2_functional

from understudy.data import rand_augment as ra
from understudy.data.augment import augment
from understudy.errors import UserError
from understudy.randomness import key, keys

STAGES = {
    "crop": {"crop": 3},
    "flip": {"flip": True},
    "crop_and_flip": {"crop": 2, "flip": True},
    "rand_augment": {"rand_augment": (2, 9.0)},
    "erase": {"erase": 0.7},
    "all": {"crop": 4, "flip": True, "rand_augment": (3, 7.3), "erase": 0.5},
}


def images_of(count: int, channels: int = 3, height: int = 32, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Smooth pictures of limited range with some noise: flat noise would hide what most operations do."""
    draws = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 5, 5, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    low, span = torch.rand(2, count, channels, 1, 1, generator=draws)
    noise = torch.randn(smooth.shape, generator=draws) * 4
    return ((smooth * (0.3 + 0.7 * span) + 0.3 * low) * 220 + noise).clamp(0, 255).to(torch.uint8)


def noise_of(*shape: int) -> torch.Tensor:
    """Random levels without black, so that pixels from outside the image can be told."""
    draws = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, shape, dtype=torch.uint8, generator=draws)


def keys_of(count: int, epoch: int = 0) -> np.ndarray:
    return keys(key(0, "view", epoch), np.arange(count))


# A view depends on its key and on nothing else


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_a_view_has_the_same_bits_alone_in_a_batch_and_in_another_order(stage: str, channels: int):
    images, sample_keys = images_of(64, channels, 29, 33), keys_of(64)
    together = augment(images, sample_keys, **STAGES[stage])
    assert together.dtype == torch.uint8
    assert together.shape == images.shape
    assert not torch.equal(together, images)
    for place in range(64):
        one = slice(place, place + 1)
        assert torch.equal(augment(images[one], sample_keys[one], **STAGES[stage]), together[one])
    order = np.random.default_rng(3).permutation(64)
    assert torch.equal(augment(images[order], sample_keys[order], **STAGES[stage]), together[order])


VALUES = {
    "rotate": np.linspace(-30, 30, 64),
    "solarize": np.linspace(0, 255, 64),
    "color": np.linspace(0.1, 1.9, 64),
    "posterize": np.tile(np.arange(9.0), 8)[:64],
    "contrast": np.linspace(0.1, 1.9, 64),
    "brightness": np.linspace(0.1, 1.9, 64),
    "sharpness": np.linspace(0.1, 1.9, 64),
    "shear_x": np.linspace(-0.3, 0.3, 64),
    "shear_y": np.linspace(-0.3, 0.3, 64),
    "translate_x": np.linspace(-14, 14, 64),
    "translate_y": np.linspace(-14, 14, 64),
    "auto_contrast": np.zeros(64),
    "equalize": np.zeros(64),
}


def test_the_table_holds_the_fourteen_operations_and_the_tests_cover_them():
    assert set(ra.OPERATIONS) == {*VALUES, "identity"}
    assert len(ra.OPERATIONS) == 14


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", VALUES)
def test_an_operation_has_the_same_bits_alone_in_a_batch_and_in_another_order(name: str, channels: int):
    images, values = images_of(64, channels, 31, 33), VALUES[name]
    apply = ra.OPERATIONS[name].apply
    assert apply is not None
    before = images.clone()
    together = apply(images, values)
    assert torch.equal(images, before)
    for place in range(64):
        one = slice(place, place + 1)
        assert torch.equal(apply(images[one], values[one]), together[one])
    order = np.random.default_rng(3).permutation(64)
    assert torch.equal(apply(images[order], values[order]), together[order])
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(apply(channels_last, values), together)


@pytest.mark.parametrize("stage", STAGES)
def test_another_key_gives_another_view(stage: str):
    images = images_of(1).expand(256, -1, -1, -1)
    views = augment(images, keys_of(256), **STAGES[stage])
    later = augment(images, keys_of(256, epoch=1), **STAGES[stage])
    same = (views == later).flatten(1).all(1).float().mean()
    # Flipping alone has two results; all other stages have many, and erasing leaves three in ten as they are.
    assert same < {"flip": 0.6, "erase": 0.2}.get(stage, 0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_the_images_given_stay_as_they_are_and_any_layout_gives_the_same(stage: str):
    images, sample_keys = images_of(64), keys_of(64)
    before = images.clone()
    views = augment(images, sample_keys, **STAGES[stage])
    assert torch.equal(images, before)
    channels_last = images.contiguous(memory_format=torch.channels_last)
    assert torch.equal(augment(channels_last, sample_keys, **STAGES[stage]), views)


def test_a_stage_draws_the_same_whatever_other_stages_do():
    """Which window and which box are drawn must not change when flipping is switched on."""
    sample_keys = keys_of(256)
    symmetric = images_of(256)
    symmetric = torch.maximum(symmetric, symmetric.flip(-1))
    cropped = augment(symmetric, sample_keys, crop=3)
    both = augment(symmetric, sample_keys, crop=3, flip=True)
    # A mirrored window of a symmetric picture is the window or its mirror image.
    as_is = (both == cropped).flatten(1).all(1)
    mirrored = (both == cropped.flip(-1)).flatten(1).all(1)
    assert (as_is | mirrored).all()
    black = torch.zeros(256, 1, 16, 16, dtype=torch.uint8)
    boxes = augment(black, sample_keys, erase=0.5)
    assert torch.equal(augment(black, sample_keys, erase=0.5, crop=2, flip=True), boxes)


def test_stages_do_not_share_their_draws():
    numbered = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(4000, -1, -1, -1)
    sample_keys = keys_of(4000)
    mirrored = augment(numbered, sample_keys, flip=True)[:, 0, 0, 0].numpy() != 0
    erased = augment(numbered * 0, sample_keys, erase=0.5).flatten(1).any(1).numpy()
    corner = augment(numbered, sample_keys, crop=4)[:, 0, 8, 8].numpy()
    row, column = corner // 16, corner % 16
    for first, second in [
        (mirrored, erased),
        (mirrored, row),
        (mirrored, column),
        (erased, row),
        (row, column),
    ]:
        table = stats.contingency.crosstab(first, second).count
        assert stats.chi2_contingency(table).pvalue > 1e-3


def test_an_empty_batch_gives_an_empty_batch():
    assert augment(images_of(1)[:0], keys_of(0), **STAGES["all"]).shape == (0, 3, 32, 32)


def test_nothing_switched_on_changes_nothing():
    images = images_of(4)
    assert torch.equal(augment(images, keys_of(4)), images)
    assert torch.equal(augment(images, keys_of(4), rand_augment=(0, 9)), images)


# Crop and flip


@pytest.mark.parametrize("channels", [1, 2, 3, 5])
def test_a_crop_is_one_of_the_windows_of_the_padded_image_and_all_are_equally_likely(channels: int):
    image = noise_of(channels, 6, 8)
    views = augment(image.expand(5000, -1, -1, -1), keys_of(5000), crop=2)
    padded = torch.nn.functional.pad(image, (2, 2, 2, 2))
    counts = []
    for top in range(5):
        for left in range(5):
            window = padded[:, top : top + 6, left : left + 8]
            counts.append(int((views == window).flatten(1).all(1).sum()))
    assert sum(counts) == 5000
    assert stats.chisquare(counts).pvalue > 1e-3


def test_half_of_the_images_are_mirrored():
    images = images_of(2000, 1, 8, 9)
    views = augment(images, keys_of(2000), flip=True)
    mirrored = (views == images.flip(-1)).flatten(1).all(1)
    as_is = (views == images).flatten(1).all(1)
    assert (mirrored ^ as_is).all()
    assert stats.binomtest(int(mirrored.sum()), 2000).pvalue > 1e-3


def test_crop_and_flip_together_are_the_flip_of_the_crop():
    images, sample_keys = images_of(64, 3, 12, 10), keys_of(64)
    flipped = augment(augment(images, sample_keys, crop=3), sample_keys, flip=True)
    assert torch.equal(augment(images, sample_keys, crop=3, flip=True), flipped)


# Erasing


def boxes_of(views: torch.Tensor) -> np.ndarray:
    """(N, 4): top, left, height and width of what is not black."""
    boxes = []
    for view in views.amax(dim=1):
        rows, columns = np.flatnonzero(view.any(1)), np.flatnonzero(view.any(0))
        boxes.append((rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1))
    return np.array(boxes)


def test_erased_boxes_have_the_area_and_the_aspect_of_the_paper():
    black = torch.zeros(3000, 3, 64, 64, dtype=torch.uint8)
    views = augment(black, keys_of(3000), erase=1.0)
    top, left, height, width = boxes_of(views).T
    area = height * width / 64**2
    assert area.min() > 0.015
    assert area.max() < 0.345
    aspect = np.log(height / width)
    assert np.abs(aspect).max() < math.log(3.3) + 0.25  # sizes are whole pixels
    # Boxes that do not fit are drawn again; among areas below 0.25 all fit, and both draws are uniform.
    small = area < 0.25
    assert stats.kstest(area[small], stats.uniform(0.02, 0.23).cdf).pvalue > 1e-3
    low, high = math.log(0.3), math.log(3.3)
    assert stats.kstest(aspect[small], stats.uniform(low, high - low).cdf).pvalue > 1e-4
    # Positions are uniform over all that keep the box inside.
    for start, length in ((top, height), (left, width)):
        share = (start + 0.5) / (64 - length + 1)
        assert start.min() >= 0
        assert stats.kstest(share, "uniform").pvalue > 1e-3


def test_erasing_happens_with_the_given_probability():
    black = torch.zeros(2000, 1, 16, 16, dtype=torch.uint8)
    erased = augment(black, keys_of(2000), erase=0.25).flatten(1).any(1)
    assert stats.binomtest(int(erased.sum()), 2000, 0.25).pvalue > 1e-3


def test_erased_pixels_are_uniform_random_levels_and_the_rest_is_untouched():
    images = images_of(200)
    views = augment(images, keys_of(200), erase=1.0)
    black, white = torch.zeros_like(images), torch.full_like(images, 255)
    # Where a black and a white picture give the same, the pixel was drawn.
    inside = augment(black, keys_of(200), erase=1.0) == augment(white, keys_of(200), erase=1.0)
    assert torch.equal(views[~inside], images[~inside])
    levels = views[inside].numpy()
    assert stats.chisquare(np.bincount(levels, minlength=256)).pvalue > 1e-3
    by_channel = augment(black, keys_of(200), erase=1.0)[inside[:, :1].expand(-1, 3, -1, -1)]
    assert len(by_channel) > 10_000
    neighbours = np.corrcoef(levels[:-1].astype(float), levels[1:].astype(float))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(len(levels))


# The operations of RandAugment against torchvision, image by image


def expect(name: str, images: torch.Tensor, reference) -> tuple[torch.Tensor, torch.Tensor]:
    """Ours for the whole batch, and `reference(image, value)` for one image after the other."""
    values = VALUES[name]
    operation = ra.OPERATIONS[name].apply
    assert operation is not None
    ours = operation(images, values)
    theirs = torch.stack([reference(image, float(value)) for image, value in zip(images, values, strict=True)])
    return ours, theirs


EXACT = {
    "auto_contrast": lambda image, value: v2_functional.autocontrast(image),
    "equalize": lambda image, value: v2_functional.equalize(image),
    "posterize": lambda image, value: v2_functional.posterize(image, int(value)),
    "solarize": lambda image, value: v2_functional.solarize(image, value),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", EXACT)
def test_integer_operations_equal_torchvision(name: str, channels: int):
    images = images_of(64, channels, 40, 37)
    images[0] = 17  # one level
    images[1, 0] = torch.where(noise_of(40, 37) < 248, 0, 200).to(torch.uint8)  # too few pixels to equalize
    images[2] = noise_of(*images[2].shape)
    ours, theirs = expect(name, images, EXACT[name])
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours, images)


ENHANCING = {
    "color": v2_functional.adjust_saturation,
    "contrast": v2_functional.adjust_contrast,
    "brightness": v2_functional.adjust_brightness,
    "sharpness": v2_functional.adjust_sharpness,
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ENHANCING)
def test_enhancing_operations_are_within_one_level_of_torchvision(name: str, channels: int):
    images = images_of(64, channels, 33, 40)
    images[0] = noise_of(*images[0].shape)
    ours, theirs = expect(name, images, ENHANCING[name])
    difference = (ours.int() - theirs.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.02
    assert torch.equal(ours, images) == (name == "color" and channels == 1)


@pytest.mark.parametrize("name", ENHANCING)
def test_an_enhancing_factor_of_one_changes_nothing(name: str):
    images = images_of(8)
    operation = ra.OPERATIONS[name].apply
    assert operation is not None
    assert torch.equal(operation(images, np.ones(8)), images)


def test_images_of_two_pixels_are_not_sharpened():
    images = images_of(2, 3, 2, 9)
    assert torch.equal(ra.sharpness(images, np.array([0.1, 1.9])), images)


def affine(image: torch.Tensor, translate: tuple[int, int] = (0, 0), shear: tuple[float, float] = (0.0, 0.0)):
    degrees = [math.degrees(math.atan(level)) for level in shear]
    centre = [0.0, 0.0] if any(shear) else None
    return v1.affine(image, angle=0.0, translate=list(translate), scale=1.0, shear=degrees, center=centre)


GEOMETRIC = {
    "rotate": lambda image, value: v1.rotate(image, value),
    "shear_x": lambda image, value: affine(image, shear=(value, 0.0)),
    "shear_y": lambda image, value: affine(image, shear=(0.0, value)),
    "translate_x": lambda image, value: affine(image, translate=(int(value), 0)),
    "translate_y": lambda image, value: affine(image, translate=(0, int(value))),
}


@pytest.mark.parametrize(("height", "width"), [(28, 28), (33, 40), (31, 31)])
@pytest.mark.parametrize("name", GEOMETRIC)
def test_geometric_operations_read_the_pixels_torchvision_reads(name: str, height: int, width: int):
    images = noise_of(64, 3, height, width)
    ours, theirs = expect(name, images, GEOMETRIC[name])
    equal = (ours == theirs).all(1).flatten(1).float().mean(1)
    if name.startswith("translate"):
        assert (equal == 1).all()
    assert equal.mean() > 0.999
    assert equal.min() > 0.98  # of 31 x 31 turned by exactly 30°, ties of the middle column fall either way
    assert ((ours == images).flatten(1).all(1)).sum() < 8


# How the operations are drawn


def test_values_are_those_of_torchvision_at_its_bins():
    theirs = v2.RandAugment._AUGMENTATION_SPACE
    names = {"".join(word.title() for word in name.split("_")): name for name in ra.OPERATIONS}
    assert set(names) == set(theirs)
    for their_name, (magnitudes, signed) in theirs.items():
        operation = ra.OPERATIONS[names[their_name]]
        assert operation.signed == signed
        bins = magnitudes(31, 28, 48)
        if bins is None:
            continue
        scale = 255 if their_name == "Solarize" else 1
        ours = np.array([operation.value(place / 30, 28, 48) for place in range(31)])
        if their_name == "Posterize":
            ours = np.rint(ours)
        np.testing.assert_allclose(ours, bins.numpy() * scale, atol=1e-4)


def test_all_operations_and_both_signs_are_equally_likely(monkeypatch: pytest.MonkeyPatch):
    seen: dict[str, list[float]] = {}

    def record(name: str):
        def apply(images: torch.Tensor, values: np.ndarray) -> torch.Tensor:
            seen.setdefault(name, []).extend(values)
            return images

        return apply

    spies = {
        name: ra.Operation(record(name), operation.value, operation.signed, operation.base)
        for name, operation in ra.OPERATIONS.items()
    }
    monkeypatch.setattr(ra, "OPERATIONS", spies)
    ra.rand_augment(images_of(1, 1, 28, 28).expand(7000, -1, -1, -1), keys_of(7000), count=2, magnitude=5.0)
    assert sum(map(len, seen.values())) == 14_000
    assert stats.chisquare([len(values) for values in seen.values()]).pvalue > 1e-3
    assert len(seen) == 14
    for name, operation in spies.items():
        if not operation.signed:
            assert len(set(seen[name])) == 1
            continue
        strength = operation.value(0.5, 28, 28)
        up = np.isclose(seen[name], operation.base + strength)
        down = np.isclose(seen[name], operation.base - strength)
        assert (up ^ down).all()
        assert stats.binomtest(int(up.sum()), len(up)).pvalue > 1e-3


def test_two_operations_are_one_after_the_other():
    images, sample_keys = images_of(64), keys_of(64)
    once = ra.rand_augment(images, sample_keys, count=1, magnitude=9)
    twice = ra.rand_augment(images, sample_keys, count=2, magnitude=9)
    changed = (once != twice).flatten(1).any(1).float().mean()
    assert changed > 0.7


def test_magnitude_zero_leaves_most_operations_without_effect():
    """Two operations have no magnitude; solarize at 255 inverts white, of which there is none here."""
    images = images_of(256).clamp(max=254)
    views = ra.rand_augment(images, keys_of(256), count=1, magnitude=0.0)
    changed = (views != images).flatten(1).any(1).float().mean()
    assert 0.05 < changed < 0.25


# What is refused


@pytest.mark.parametrize(
    ("images", "settings", "words"),
    [
        (torch.zeros(4, 3, 8, 8), {}, "float32"),
        (torch.zeros(4, 8, 8, dtype=torch.uint8), {}, r"\(4, 8, 8\)"),
        (torch.zeros(5, 3, 8, 8, dtype=torch.uint8), {}, "as many keys"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"crop": -1}, "crop"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"erase": 1.5}, "probability"),
        (torch.zeros(4, 2, 8, 8, dtype=torch.uint8), {"rand_augment": (2, 9)}, "1 or 3 channels, not 2"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"rand_augment": (2, 11)}, "between 0 and 10"),
        (torch.zeros(4, 3, 8, 8, dtype=torch.uint8), {"rand_augment": (-1, 9)}, "0 or more"),
    ],
)
def test_what_cannot_be_augmented_is_refused_by_name(images: torch.Tensor, settings: dict, words: str):
    with pytest.raises(UserError, match=words):
        augment(images, keys_of(4), **settings)
