"""What DeiT adds to the augmentation: timm's RandAugment, colour jitter, normally distributed noise where it erases."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torchvision.transforms.v2 import functional as v2

from understudy.data import rand_augment_timm
from understudy.data.augment import augment
from understudy.data.color_jitter import color_jitter
from understudy.data.rand_augment import rand_augment
from understudy.errors import UserError
from understudy.randomness import key, keys

# The name that timm gives each of ours in its set of growing operations.
NAMES = {
    "auto_contrast": "AutoContrast",
    "equalize": "Equalize",
    "invert": "Invert",
    "rotate": "Rotate",
    "posterize": "PosterizeIncreasing",
    "solarize": "SolarizeIncreasing",
    "solarize_add": "SolarizeAdd",
    "color": "ColorIncreasing",
    "contrast": "ContrastIncreasing",
    "brightness": "BrightnessIncreasing",
    "sharpness": "SharpnessIncreasing",
    "shear_x": "ShearX",
    "shear_y": "ShearY",
    "translate_x": "TranslateXRel",
    "translate_y": "TranslateYRel",
}
STRENGTHS = np.array([0.0, 0.13, 0.5, 0.87, 1.0])


def keys_of(count: int, epoch: int = 0) -> np.ndarray:
    return keys(key(0, "view", epoch), np.arange(count))


def pictures(count: int = 4, channels: int = 3, size: int = 24) -> torch.Tensor:
    draws = torch.Generator().manual_seed(2)
    coarse = torch.rand(count, channels, 4, 4, generator=draws)
    smooth = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bilinear")
    return (smooth * 235 + 10).to(torch.uint8)


# timm's RandAugment


@pytest.fixture
def timm_ops():
    return pytest.importorskip("timm.data.auto_augment")


def test_there_are_timms_operations_and_no_others(timm_ops):
    assert [NAMES[name] for name in rand_augment_timm.OPERATIONS] == timm_ops._RAND_INCREASING_TRANSFORMS


@pytest.mark.parametrize("name", NAMES)
def test_the_values_are_timms(name: str, timm_ops, monkeypatch):
    monkeypatch.setattr(timm_ops, "_randomly_negate", lambda value: value)
    level_of = timm_ops.LEVEL_TO_ARG[NAMES[name]]
    if level_of is None:
        return
    operation = rand_augment_timm.OPERATIONS[name]
    values = operation.base + np.broadcast_to(operation.value(STRENGTHS, 20, 40), STRENGTHS.shape)
    theirs = np.array([level_of(10 * strength, {"translate_pct": 0.45})[0] for strength in STRENGTHS])
    if name in ("posterize", "solarize"):  # ours count from the other end
        values = {"posterize": 4, "solarize": 256}[name] - values
    if name.startswith("translate"):
        theirs = theirs * (40 if name == "translate_x" else 20)
    np.testing.assert_allclose(values, theirs, atol=1e-9)


@pytest.mark.parametrize("name", ["auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"])
def test_operations_on_levels_equal_timms(name: str, timm_ops):
    operation = rand_augment_timm.OPERATIONS[name]
    level_of, theirs = timm_ops.LEVEL_TO_ARG[NAMES[name]], timm_ops.NAME_TO_OP[NAMES[name]]
    images = pictures(len(STRENGTHS))
    ours = operation.apply(images, np.broadcast_to(operation.value(STRENGTHS, 24, 24), STRENGTHS.shape))
    off = 1 if name == "auto_contrast" else 0  # ours stretches as torchvision does, which cuts where Pillow rounds
    for place, strength in enumerate(STRENGTHS):
        if name == "posterize" and strength == 1:
            continue  # to no bits at all, which Pillow refuses
        picture = Image.fromarray(images[place].permute(1, 2, 0).numpy())
        expected = np.asarray(theirs(picture, *(level_of(10 * strength, {}) if level_of else ())), dtype=int)
        assert np.abs(ours[place].permute(1, 2, 0).numpy() - expected).max() <= off


@pytest.mark.parametrize("name", ["color", "contrast", "brightness", "sharpness"])
def test_enhancing_operations_equal_pillows_to_a_level_and_never_go_below_a_tenth(name: str):
    from PIL import ImageEnhance

    images, factors = pictures(4), np.array([0.02, 0.4, 1.0, 1.9])
    ours = rand_augment_timm.OPERATIONS[name].apply(images, factors)
    for place, factor in enumerate(factors):
        picture = Image.fromarray(images[place].permute(1, 2, 0).numpy())
        expected = np.asarray(getattr(ImageEnhance, name.title())(picture).enhance(max(0.1, factor)), dtype=int)
        assert np.abs(ours[place].permute(1, 2, 0).numpy() - expected).max() <= 2


@pytest.mark.parametrize("channels", [1, 3])
def test_what_a_geometric_operation_leaves_empty_has_the_mean_colour(channels: int):
    images = pictures(3, channels)
    moved = rand_augment_timm.OPERATIONS["translate_x"].apply(images, np.array([0.0, 5.0, -7.0]))
    fill = torch.tensor([124, 116, 104] if channels == 3 else [118], dtype=torch.uint8).view(-1, 1, 1)
    assert torch.equal(moved[0], images[0])
    assert torch.equal(moved[1][:, :, 5:], images[1][:, :, :-5])
    assert torch.equal(moved[1][:, :, :5], fill.expand(channels, 24, 5))
    assert torch.equal(moved[2][:, :, :-7], images[2][:, :, 7:])
    assert torch.equal(moved[2][:, :, -7:], fill.expand(channels, 24, 7))


def test_half_of_the_operations_drawn_are_applied():
    images = pictures(1).expand(4000, -1, -1, -1)
    views = rand_augment(
        images, keys_of(4000), count=1, magnitude=9, operations={"invert": rand_augment_timm.OPERATIONS["invert"]},
        probability=rand_augment_timm.PROBABILITY,
    )  # fmt: skip
    changed = int((views != images).flatten(1).any(1).sum())
    assert stats.binomtest(changed, 4000, 0.5).pvalue > 1e-3
    assert torch.equal(views[(views != images).flatten(1).any(1)][0], 255 - images[0])


def test_the_magnitude_varies_by_its_deviation_and_stays_in_range():
    added = []

    def note(images: torch.Tensor, values: np.ndarray) -> torch.Tensor:
        added.append(values)
        return images

    operation = rand_augment_timm.Operation(note, lambda strength, height, width: 10 * strength)
    images = pictures(1, 1, 4).expand(4000, -1, -1, -1)
    rand_augment(images, keys_of(4000), count=1, magnitude=9, std=0.5, operations={"x": operation})
    values = np.concatenate(added)
    assert values.max() == 10
    below = values[values < 10]
    expected = stats.truncnorm(-np.inf, (10 - 9) / 0.5, loc=9, scale=0.5)
    assert stats.kstest(below, expected.cdf).pvalue > 1e-3


@pytest.mark.parametrize("std", [0.0, 0.5])
def test_a_view_has_the_same_bits_alone_and_in_a_batch(std: float):
    settings = {
        "color_jitter": 0.3,
        "rand_augment": (2, 9.0),
        "rand_augment_std": std,
        "rand_augment_as": "timm",
        "erase": 0.7,
        "erase_with": ((0.48, 0.46, 0.41), (0.23, 0.22, 0.23)),
    }
    images, sample_keys = pictures(32), keys_of(32)
    together = augment(images, sample_keys, **settings)
    assert not torch.equal(together, images)
    for place in range(32):
        one = slice(place, place + 1)
        assert torch.equal(augment(images[one], sample_keys[one], **settings), together[one])


# Colour jitter


def test_factors_are_even_around_one():
    grey = torch.full((3000, 1, 2, 2), 100, dtype=torch.uint8)  # contrast and saturation leave flat grey as it is
    views = color_jitter(grey, keys_of(3000), strength=0.4)
    levels = views[:, 0, 0, 0].double().numpy() / 100
    assert levels.min() >= 0.59
    assert levels.max() <= 1.4
    jittered = levels + np.random.default_rng(0).uniform(0, 0.01, len(levels))  # whole levels were cut
    assert stats.kstest(jittered, stats.uniform(0.6, 0.8).cdf).pvalue > 1e-3


def test_each_order_of_the_three_is_torchvisions_and_equally_likely():
    images = pictures(1).expand(600, -1, -1, -1)
    draws_of = {}
    from understudy.data import color_jitter as module
    from understudy.randomness import uniform

    draws = uniform(keys_of(600), 4)
    views = color_jitter(images, keys_of(600), strength=0.5)
    steps = (v2.adjust_brightness, v2.adjust_contrast, v2.adjust_saturation)
    for place in range(600):
        order = tuple(module._ORDERS[int(draws[place, 0] * 6)])
        draws_of[order] = draws_of.get(order, 0) + 1
        if place < 40:
            expected = images[place]
            for number in order:
                expected = steps[number](expected, 0.5 + draws[place, 1 + number])
            assert (views[place].int() - expected.int()).abs().max() <= 3
    assert len(draws_of) == 6
    assert stats.chisquare(list(draws_of.values())).pvalue > 1e-3


def test_colours_of_two_channels_are_refused():
    with pytest.raises(UserError, match="1 or 3 channels, not 2"):
        color_jitter(pictures(1, 2), keys_of(1), strength=0.3)
    with pytest.raises(UserError, match="0 or more, not -1"):
        color_jitter(pictures(1), keys_of(1), strength=-1)


# Erasing


def test_erased_pixels_are_normal_after_normalisation():
    mean, std = (0.5, 0.45, 0.4), (0.15, 0.12, 0.1)  # so narrow that no level is cut off
    images = torch.zeros(60, 3, 32, 32, dtype=torch.uint8)
    views = augment(images, keys_of(60), erase=1.0, erase_with=(mean, std))
    assert (views != images).any()
    for channel in range(3):
        levels = views[:, channel][views[:, channel] > 0].double().numpy() / 255
        noise = np.random.default_rng(channel).uniform(-0.5, 0.5, len(levels)) / 255  # whole levels were rounded
        normalised = (levels + noise - mean[channel]) / std[channel]
        assert stats.kstest(normalised[:20_000], "norm").pvalue > 1e-3


def test_one_mean_serves_all_channels_and_noise_differs_between_them():
    images = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    views = augment(images, keys_of(8), erase=1.0, erase_with=((0.5,), (0.1,)))
    inside = views.flatten(2).amax(2).amin(1) > 0
    assert inside.any()
    assert not torch.equal(views[inside][:, 0], views[inside][:, 1])
