"""Brings the parameters of the original's networks (Flax) into diffusers' UNet2DModel; the shape is read off them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor

from understudy.errors import UserError
from understudy.tasks.diffusion.flax_file import read_flax
from understudy.tasks.diffusion.network import build_unet
from understudy.tasks.diffusion.shapes import Shape

Tree = dict[str, Any]


def load_published(path: str | Path, *, size: int, average: bool = True) -> tuple[UNet2DModel, int | None]:
    """Read a checkpoint of the original.

    Args:
        path: a file such as `cifar_8` or `imagenet_8`.
        size: height and width of its images, which the file does not say.
        average: the moving average of the weights, which the original samples with, or the weights themselves.

    Returns:
        The network, and the number of steps it was distilled to, where the file says.

    Raises:
        UserError: it is no such file, or no network of that kind is in it.
    """
    path = Path(path)
    content = read_flax(path)
    try:
        tree = content["ema_params"] if average else content["optimizer"]["target"]
        unet = unet_from_tree(tree, size=size)
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"holds no network of the original's kind ({error})", where=path) from None
    steps = content.get("num_sample_steps")
    return unet, None if steps is None else int(np.asarray(steps).reshape(-1)[0])


def unet_from_tree(tree: Tree, *, size: int) -> UNet2DModel:
    """Make a UNet of the original's parameters.

    Args:
        tree: parameters by module (`down_0.block_0`) and name.
        size: height and width of the images.

    Raises:
        UserError: what they describe does not fit images of that size, or diffusers has no such network.
    """
    kernel = tree["conv_in"]["kernel"]
    image = (kernel.shape[2], size, size)
    outputs = tree["conv_out"]["kernel"].shape[3]
    classes = len(tree["class_emb"]["kernel"]) if "class_emb" in tree else 0
    unet = build_unet(shape_of(tree, size), image=image, outputs=outputs, classes=classes)
    unet.load_state_dict(dict(_translated(tree)), strict=True)
    return unet.eval()


def shape_of(tree: Tree, size: int) -> Shape:
    """Read the shape of a network off its parameters."""
    channels = tree["conv_in"]["kernel"].shape[3]
    levels = 1 + max(int(name[5:].split(".")[0]) for name in tree if name.startswith("down_"))
    widths = [tree[f"down_{level}.block_0"]["conv1"]["kernel"].shape[3] for level in range(levels)]
    if widths[0] != channels:
        raise UserError(
            f"its first level has {widths[0]} channels, the convolution before it {channels}: diffusers' UNet2DModel "
            "has no such network"
        )
    attended = [level for level in range(levels) if f"down_{level}.attn_0" in tree]
    heads = [tree[f"down_{level}.attn_0"]["q"]["kernel"].shape[1:] for level in attended]
    heads.append(tree["mid.attn_1"]["q"]["kernel"].shape[1:])
    same_size = len({head_dim for _, head_dim in heads}) == 1
    return Shape(
        channels=channels,
        multipliers=tuple(width // channels for width in widths),
        blocks=sum(name.startswith("down_0.block_") for name in tree),
        attention=tuple(size // 2**level for level in attended),
        embedding=tree["dense1"]["kernel"].shape[1],
        heads=int(heads[0][0]),
        head_dim=int(heads[0][1]) if same_size else None,
        resample=levels == 1 or "norm1" in tree["down_0.downsample"],
    )


def _translated(tree: Tree) -> Iterator[tuple[str, Tensor]]:
    levels = 1 + max(int(name[5:].split(".")[0]) for name in tree if name.startswith("down_"))
    for name, group in tree.items():
        if name in ("conv_in", "conv_out"):
            yield from _convolution(name, group)
        elif name == "norm_out":
            yield from _norm("conv_norm_out", group)
        elif name in ("dense0", "dense1"):
            yield from _dense(f"time_embedding.linear_{int(name[-1]) + 1}", group)
        elif name == "class_emb":
            yield "class_embedding.weight", _tensor(group["kernel"] + group["bias"])
        else:
            yield from _part(name, group, levels)


def _part(name: str, group: Tree, levels: int) -> Iterator[tuple[str, Tensor]]:
    """A block of a level, such as `down_0.block_1`, `up_2.upsample` or `mid.attn_1`."""
    where, what = name.split(".")
    direction, _, level = where.partition("_")
    if direction == "mid":
        home = "mid_block"
    else:
        home = f"{direction}_blocks.{int(level) if direction == 'down' else levels - 1 - int(level)}"
    kind, _, number = what.partition("_")
    if kind == "attn":
        yield from _attention(f"{home}.attentions.{0 if direction == 'mid' else number}", group)
    elif kind == "block":
        yield from _block(f"{home}.resnets.{int(number) - 1 if direction == 'mid' else number}", group)
    else:
        home = f"{home}.{what}rs.0"
        if "norm1" in group:
            yield from _block(home, group)
        else:
            yield from _convolution(f"{home}.conv", group)


def _block(home: str, group: Tree) -> Iterator[tuple[str, Tensor]]:
    for number in (1, 2):
        yield from _norm(f"{home}.norm{number}", group[f"norm{number}"])
        yield from _convolution(f"{home}.conv{number}", group[f"conv{number}"])
    yield from _dense(f"{home}.time_emb_proj", group["temb_proj"])
    if "nin_shortcut" in group:
        shortcut = group["nin_shortcut"]
        yield f"{home}.conv_shortcut.weight", _tensor(shortcut["kernel"].T[:, :, None, None])
        yield f"{home}.conv_shortcut.bias", _tensor(shortcut["bias"])


def _attention(home: str, group: Tree) -> Iterator[tuple[str, Tensor]]:
    yield from _norm(f"{home}.group_norm", group["norm"])
    for name in ("q", "k", "v"):
        kernel, bias = group[name]["kernel"], group[name]["bias"]
        yield from _dense(f"{home}.to_{name}", {"kernel": kernel.reshape(len(kernel), -1), "bias": bias.reshape(-1)})
    kernel = group["proj_out"]["kernel"]
    flat = {"kernel": kernel.reshape(-1, kernel.shape[-1]), "bias": group["proj_out"]["bias"]}
    yield from _dense(f"{home}.to_out.0", flat)


def _norm(home: str, group: Tree) -> Iterator[tuple[str, Tensor]]:
    # Early versions of Flax kept them as (1, 1, 1, C).
    yield f"{home}.weight", _tensor(group["scale"].reshape(-1))
    yield f"{home}.bias", _tensor(group["bias"].reshape(-1))


def _dense(home: str, group: Tree) -> Iterator[tuple[str, Tensor]]:
    yield f"{home}.weight", _tensor(group["kernel"].T)
    yield f"{home}.bias", _tensor(group["bias"])


def _convolution(home: str, group: Tree) -> Iterator[tuple[str, Tensor]]:
    yield f"{home}.weight", _tensor(group["kernel"].transpose(3, 2, 0, 1))
    yield f"{home}.bias", _tensor(group["bias"])


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array, np.float32, order="C"))
