"""Vision transformers of timm at the size of the data, with one token or DeiT's two."""

from typing import Any, Literal

from torch import nn

from understudy.errors import UserError

# The architectures that timm builds from any sizes: the class token alone, or with DeiT's distillation token.
_ARCHITECTURES = {1: "deit_tiny_patch16_224", 2: "deit_tiny_distilled_patch16_224"}


def vit(
    *,
    classes: int,
    shape: tuple[int, int, int],
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    tokens: Literal[1, 2] = 1,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> nn.Module:
    """Build timm's VisionTransformer, or with two tokens its VisionTransformerDistilled, for images of any size.

    References: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021 (https://arxiv.org/abs/2010.11929);
    Touvron et al., "Training data-efficient image transformers & distillation through attention", ICML 2021
    (https://arxiv.org/abs/2012.12877), for the second token and its head.

    Args:
        classes: number of logits of each head.
        shape: (C, H, W) of one image; `patch` divides height and width.
        patch: height and width of a patch, in pixels.
        width: of a token; the heads share it evenly.
        depth: number of blocks.
        heads: attention heads of a block.
        tokens: 1 for the class token; 2 for the distillation token too, which has a head of its own.
        mlp_ratio: hidden width of a block's MLP as a multiple of `width`.
        drop_path: probability of skipping the last block; those before it are skipped less, in proportion.
        dropout: probability of dropping a value of the embedding in front of the head.

    Raises:
        UserError: the patches do not fill the image, or the heads do not share the width.
    """
    from understudy.models.build import extra

    _check_sizes(shape, patch, width, heads)
    architecture, arguments = as_timm(
        shape=shape,
        patch=patch,
        width=width,
        depth=depth,
        heads=heads,
        tokens=tokens,
        mlp_ratio=mlp_ratio,
        drop_path=drop_path,
        dropout=dropout,
    )
    module = extra("timm", "vit").create_model(architecture, num_classes=classes, **arguments)
    if tokens == 2:
        module.set_distilled_training(True)  # in training both heads' logits, not their mean
    return module


def as_timm(
    *,
    shape: tuple[int, int, int],
    patch: int = 4,
    width: int = 64,
    depth: int = 4,
    heads: int = 4,
    tokens: int = 1,
    mlp_ratio: float = 4.0,
    drop_path: float = 0.0,
    dropout: float = 0.0,
) -> tuple[str, dict[str, Any]]:
    """The architecture and the arguments by which timm's `create_model` makes the same network.

    Args:
        shape: (C, H, W) of one image.
        patch: as for `vit`, like the further ones.
        width: of a token.
        depth: number of blocks.
        heads: of a block.
        tokens: 1 or 2.
        mlp_ratio: of a block's MLP.
        drop_path: of the last block.
        dropout: in front of the head.
    """
    return _ARCHITECTURES[tokens], {
        "in_chans": shape[0],
        "img_size": list(shape[1:]),
        "patch_size": patch,
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "mlp_ratio": mlp_ratio,
        "drop_path_rate": drop_path,
        "drop_rate": dropout,
    }


def _check_sizes(shape: tuple[int, int, int], patch: int, width: int, heads: int) -> None:
    if width % heads:
        raise UserError(f"width {width} cannot be shared by {heads} heads: take a multiple of {heads}")
    _check_patches(shape[1:], (patch, patch))


def check_patches(module: nn.Module) -> None:
    """Refuse a vision transformer whose patches leave the border of its images out.

    Raises:
        UserError: the patch size does not divide the image size.
    """
    embed: Any = getattr(module, "patch_embed", None)
    image, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if image is None or patch is None or getattr(embed, "dynamic_img_pad", False):
        return
    _check_patches(tuple(image), tuple(patch))


def _check_patches(image: tuple[int, ...], patch: tuple[int, ...]) -> None:
    if any(side % part or side < part for side, part in zip(image, patch, strict=True)):
        near = max(patch[0], round(image[0] / patch[0]) * patch[0])
        raise UserError(
            f"images of {image[0]} x {image[1]} pixels cannot be cut into patches of {patch[0]} x {patch[1]}: "
            f"take a patch size that divides them, or size: {near}"
        )
