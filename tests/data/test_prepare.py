"""From pixels to a model's input, against torchvision."""

import pytest
import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2.functional import normalize, resize, to_dtype

from understudy.data import Preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(height: int = 20, width: int = 20) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (4, 3, height, width), dtype=torch.uint8, generator=generator)


def test_pixels_are_divided_and_normalised_as_torchvision_does():
    images = pixels()
    wanted = normalize(to_dtype(images, torch.float32, scale=True), list(MEAN), list(STD))
    torch.testing.assert_close(Preprocess(mean=MEAN, std=STD)(images), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(Preprocess()(images), to_dtype(images, torch.float32, scale=True))


@pytest.mark.parametrize("size", [8, 33])
@pytest.mark.parametrize("shape", [(20, 20), (14, 20)])
def test_resizing_is_torchvisions_antialiased_bilinear(size: int, shape: tuple[int, int]):
    images = pixels(*shape)
    wanted = resize(
        to_dtype(images, torch.float32, scale=True),
        [size, size],
        interpolation=InterpolationMode.BILINEAR,
        antialias=True,
    )
    torch.testing.assert_close(Preprocess(size=size)(images), wanted)


def test_the_wanted_size_is_left_as_it_is():
    assert torch.equal(Preprocess(size=20)(pixels()), Preprocess()(pixels()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_floats_are_normalised_in_their_own_scale_and_left_unchanged(dtype: torch.dtype):
    images = torch.rand(2, 3, 4, 4).to(dtype)
    before = images.clone()
    found = Preprocess(mean=(0.5,), std=(0.25,))(images)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, (before.float() - 0.5) / 0.25)
    assert torch.equal(images, before)
