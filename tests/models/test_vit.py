"""Vision transformers: timm's own classes at the size of the data, and back in plain timm."""

from pathlib import Path

import pytest
import torch

from understudy.data import Preprocess
from understudy.errors import UserError
from understudy.models import Card, build, load, save
from understudy.models.resolution import interpolate_positions
from understudy.recipe.schema import Model

timm = pytest.importorskip("timm")

SMALL = {"patch": 8, "width": 24, "depth": 2, "heads": 3}
TINY_DEIT = {"name": "timm/deit_tiny_distilled_patch16_224", "embed_dim": 24, "depth": 1, "num_heads": 3}


def made(shape=(3, 32, 32), classes: int = 5, **model):
    torch.manual_seed(0)
    return build(Model(**model), classes=classes, shape=shape)


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


# What is built


def test_one_token_is_timms_vision_transformer():
    module = made(name="vit", **SMALL)
    assert type(module) is timm.models.vision_transformer.VisionTransformer
    assert module.pos_embed.shape == (1, 1 + 16, 24)
    assert module(images()).shape == (2, 5)


def test_two_tokens_give_two_heads_in_training_and_the_mean_of_their_logits_in_evaluation():
    module = made(name="vit", tokens=2, **SMALL)
    assert type(module) is timm.models.deit.VisionTransformerDistilled
    assert module.pos_embed.shape == (1, 2 + 16, 24)
    of_class, of_teacher = module.train()(images())
    assert of_class.shape == of_teacher.shape == (2, 5)
    torch.testing.assert_close(module.eval()(images()), (of_class + of_teacher) / 2)


def test_the_image_size_is_that_of_the_data_and_need_not_be_square():
    module = made((1, 24, 16), name="vit", **SMALL)
    assert module.patch_embed.grid_size == (3, 2)
    assert module(torch.randn(2, 1, 24, 16)).shape == (2, 5)


@pytest.mark.parametrize("size", [None, 64])
def test_a_vision_transformer_of_timm_gets_the_size_of_the_data_or_its_own(size):
    module = made(size=size, **TINY_DEIT)
    assert module.patch_embed.img_size == (size or 32,) * 2
    of_class, of_teacher = module.train()(images(size or 32))
    assert of_class.shape == of_teacher.shape == (2, 5)


def test_a_convolutional_network_of_timm_gets_no_size():
    assert made((3, 40, 40), name="timm/test_resnet")(images(40)).shape == (2, 5)


# Millions of parameters with 1,000 classes, as the article and timm's published weights have them.
PARAMETERS = {
    "deit_tiny_patch16_224": 5.717,
    "deit_tiny_distilled_patch16_224": 5.911,
    "deit_small_patch16_224": 22.051,
    "deit_small_distilled_patch16_224": 22.436,
    "deit_base_patch16_224": 86.568,
    "deit_base_distilled_patch16_224": 87.338,
    "deit_base_patch16_384": 86.859,
    "deit_base_distilled_patch16_384": 87.630,
    "deit3_small_patch16_224": 22.059,
    "cait_xxs24_224": 11.956,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_articles_models_have_the_articles_sizes(name):
    size = int(name.rpartition("_")[2])
    with torch.device("meta"):
        module = build(Model(name=f"timm/{name}"), classes=1000, shape=(3, size, size))
    assert sum(parameter.numel() for parameter in module.parameters()) / 1e6 == pytest.approx(
        PARAMETERS[name], abs=6e-4
    )


# What does not fit


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "vit", **SMALL, "patch": 7}, "images of 32 x 32 pixels cannot be cut into patches of 7 x 7"),
        ({"name": "vit", **SMALL, "patch": 64}, "cannot be cut into patches of 64 x 64"),
        ({"name": "vit", **SMALL, "size": 30}, r"images of 30 x 30 .* patches of 8 x 8: .*, or size: 32"),
        ({"name": "vit", **SMALL, "heads": 5}, "width 24 cannot be shared by 5 heads: take a multiple of 5"),
        ({**TINY_DEIT, "size": 40}, "images of 40 x 40 pixels cannot be cut into patches of 16 x 16"),
        ({"name": "vit", **SMALL, "tokens": 3}, "tokens"),
        ({"name": "vit", "wide": 3}, "unknown key, did you mean 'width'"),
    ],
)
def test_sizes_that_do_not_fit_are_one_line(model, message):
    with pytest.raises(UserError, match=message) as caught:
        made(**model)
    assert "\n" not in str(caught.value)


# Saved and loaded


@pytest.mark.parametrize(
    "model",
    [
        {"name": "vit", **SMALL, "tokens": 2, "drop_path": 0.1, "mlp_ratio": 2.0},
        {"name": "vit", **SMALL},
        TINY_DEIT,
        {**TINY_DEIT, "size": 48},
    ],
    ids=["two tokens", "one token", "timm", "timm at a size of its own"],
)
def test_what_is_saved_loads_in_plain_timm_and_gives_the_same_logits(tmp_path: Path, model):
    module = made(**model)
    described = Model(**model)
    card = Card(
        described.model_dump(mode="json"), ("a", "b", "c", "d", "e"), (3, 32, 32), Preprocess(size=described.size)
    )
    save(module, tmp_path / "saved", card)
    plain = timm.create_model(f"local-dir:{tmp_path / 'saved'}", pretrained=True).eval()
    inputs = images(described.size or 32)
    assert torch.equal(plain(inputs), module.eval()(inputs))
    assert torch.equal(load(tmp_path / "saved")(inputs), module(inputs))
    assert "library_name: timm" in (tmp_path / "saved" / "README.md").read_text()


def test_pretrained_weights_at_another_size_are_interpolated_as_deit_does(tmp_path: Path):
    options = {"embed_dim": 24, "depth": 1, "num_heads": 3}
    trained = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=5, **options)
    torch.save(trained.state_dict(), tmp_path / "trained.pth")
    overlay = {"file": str(tmp_path / "trained.pth"), "num_classes": 5}
    module = made(pretrained=True, size=64, pretrained_cfg_overlay=overlay, **TINY_DEIT)
    assert torch.equal(module.pos_embed, interpolate_positions(trained.pos_embed, (4, 4), extra=2))
    assert torch.equal(module.blocks[0].attn.qkv.weight, trained.blocks[0].attn.qkv.weight)
