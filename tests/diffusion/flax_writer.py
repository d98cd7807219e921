"""Makes checkpoints in the published format and runs the original's network by its description, both written anew."""

import math
import struct

import numpy as np
import torch
import torch.nn.functional as F


def packed(value) -> bytes:
    """Nested maps, arrays as Flax's extension."""
    if isinstance(value, dict):
        return struct.pack(">BI", 0xDF, len(value)) + b"".join(
            packed(key) + packed(item) for key, item in value.items()
        )
    if isinstance(value, (list, tuple)):
        return struct.pack(">BI", 0xDD, len(value)) + b"".join(map(packed, value))
    if isinstance(value, str):
        return struct.pack(">BI", 0xDB, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, int):
        return struct.pack(">Bq", 0xD3, value)
    if value is None:
        return b"\xc0"
    inner = packed([list(value.shape), value.dtype.name, np.ascontiguousarray(value).tobytes()])
    return struct.pack(">BIb", 0xC9, len(inner), 1) + inner


def random_tree(
    *,
    channels,
    multipliers,
    blocks,
    attention,
    size,
    embedding,
    heads,
    resample,
    image=3,
    outputs=3,
    classes=1,
    seed=0,
    empty=False,
):
    """Parameters of a network of the original, none of them zero; of an empty one all are, and take no memory."""
    random = np.random.default_rng(seed)
    tree: dict[str, dict] = {}

    def dense(into, out):
        return {"kernel": noise(into, out), "bias": noise(out)}

    def noise(*shape):
        if empty:
            return np.broadcast_to(np.float32(0), shape)
        scale = 1 / math.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.1
        return (random.standard_normal(shape) * scale).astype(np.float32)

    def conv(into, out, kernel=3):
        return {"kernel": noise(kernel, kernel, into, out), "bias": noise(out)}

    def norm(width):
        return {"scale": 1 + noise(width), "bias": noise(width)}

    def block(into, out):
        found = {"norm1": norm(into), "conv1": conv(into, out), "temb_proj": dense(embedding, 2 * out)}
        found |= {"norm2": norm(out), "conv2": conv(out, out)}
        return found | ({"nin_shortcut": dense(into, out)} if into != out else {})

    def attend(width):
        number = heads(width)
        head = width // number
        found = {name: {"kernel": noise(width, number, head), "bias": noise(number, head)} for name in "qkv"}
        return {"norm": norm(width), **found, "proj_out": {"kernel": noise(number, head, width), "bias": noise(width)}}

    tree["conv_in"] = conv(image, channels)
    tree["dense0"], tree["dense1"] = dense(channels, embedding), dense(embedding, embedding)
    if classes > 1:
        tree["class_emb"] = dense(classes, embedding)
    widths = [channels * multiplier for multiplier in multipliers]
    now, skips = channels, [channels]
    for level, width in enumerate(widths):
        for number in range(blocks):
            tree[f"down_{level}.block_{number}"] = block(now, width)
            now = width
            if size // 2**level in attention:
                tree[f"down_{level}.attn_{number}"] = attend(width)
            skips.append(now)
        if level < len(widths) - 1:
            tree[f"down_{level}.downsample"] = block(now, now) if resample else conv(now, now)
            skips.append(now)
    tree["mid.block_1"], tree["mid.attn_1"], tree["mid.block_2"] = block(now, now), attend(now), block(now, now)
    for level, width in reversed(list(enumerate(widths))):
        for number in range(blocks + 1):
            tree[f"up_{level}.block_{number}"] = block(now + skips.pop(), width)
            now = width
            if size // 2**level in attention:
                tree[f"up_{level}.attn_{number}"] = attend(width)
        if level:
            tree[f"up_{level}.upsample"] = block(now, now) if resample else conv(now, now)
    tree["norm_out"], tree["conv_out"] = norm(now), conv(now, outputs)
    return tree


def run_tree(tree, images, time, labels=None):
    """The original's forward pass in float64: images (N, C, H, W), time (N,) as the embedding takes it."""
    tree = {name: _tensors(group) for name, group in tree.items()}
    channels = tree["conv_in"]["kernel"].shape[-1]
    frequencies = torch.exp(torch.arange(channels // 2).double() * -math.log(10000) / (channels // 2 - 1))
    angles = time.double()[:, None] * frequencies
    embedding = _dense(torch.cat([angles.sin(), angles.cos()], 1), tree["dense0"])
    embedding = _dense(F.silu(embedding), tree["dense1"])
    if labels is not None:
        embedding = embedding + tree["class_emb"]["kernel"][labels] + tree["class_emb"]["bias"]
    levels = 1 + max(int(name[5]) for name in tree if name.startswith("down_"))
    blocks = sum(name.startswith("down_0.block_") for name in tree)
    h = _conv(images.double(), tree["conv_in"])
    skips = [h]
    for level in range(levels):
        for number in range(blocks):
            h = _block(h, embedding, tree[f"down_{level}.block_{number}"])
            h = _attend(h, tree.get(f"down_{level}.attn_{number}"))
            skips.append(h)
        if level < levels - 1:
            group = tree[f"down_{level}.downsample"]
            resampled = "norm1" in group
            h = _block(h, embedding, group, "down") if resampled else _conv(F.pad(h, (0, 1, 0, 1)), group, 2, 0)
            skips.append(h)
    h = _attend(_block(h, embedding, tree["mid.block_1"]), tree["mid.attn_1"])
    h = _block(h, embedding, tree["mid.block_2"])
    for level in reversed(range(levels)):
        for number in range(blocks + 1):
            h = _block(torch.cat([h, skips.pop()], 1), embedding, tree[f"up_{level}.block_{number}"])
            h = _attend(h, tree.get(f"up_{level}.attn_{number}"))
        if level:
            group = tree[f"up_{level}.upsample"]
            h = _block(h, embedding, group, "up") if "norm1" in group else _conv(_larger(h), group)
    return _conv(F.silu(_norm(h, tree["norm_out"])), tree["conv_out"])


def _tensors(group):
    return {
        name: _tensors(value) if isinstance(value, dict) else torch.from_numpy(value.copy()).double()
        for name, value in group.items()
    }


def _larger(h):
    return h.repeat_interleave(2, 2).repeat_interleave(2, 3)


def _dense(h, group):
    return h @ group["kernel"] + group["bias"]


def _conv(h, group, stride=1, padding=1):
    return F.conv2d(h, group["kernel"].permute(3, 2, 0, 1), group["bias"], stride, padding)


def _norm(h, group):
    return F.group_norm(h, 32, group["scale"], group["bias"], 1e-6)


def _block(h, embedding, group, change=None):
    change = {"up": _larger, "down": lambda h: F.avg_pool2d(h, 2), None: lambda h: h}[change]
    inner = _conv(change(F.silu(_norm(h, group["norm1"]))), group["conv1"])
    scale, shift = _dense(F.silu(embedding), group["temb_proj"])[:, :, None, None].chunk(2, 1)
    inner = _conv(F.silu(_norm(inner, group["norm2"]) * (1 + scale) + shift), group["conv2"])
    h = change(h)
    if "nin_shortcut" in group:
        h = _dense(h.movedim(1, -1), group["nin_shortcut"]).movedim(-1, 1)
    return h + inner


def _attend(h, group):
    if group is None:
        return h
    tokens = _norm(h, group["norm"]).flatten(2).transpose(1, 2)
    q, k, v = (
        torch.einsum("nlc,chd->nhld", tokens, group[name]["kernel"]) + group[name]["bias"][None, :, None]
        for name in "qkv"
    )
    weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]), -1)
    out = torch.einsum("nhld,hdc->nlc", weights @ v, group["proj_out"]["kernel"]) + group["proj_out"]["bias"]
    return h + out.transpose(1, 2).reshape(h.shape)
