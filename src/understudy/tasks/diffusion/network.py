"""Networks: diffusers' UNet2DModel, built by the name of a shape, and told the time in the way it was trained with."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d import UNet2DModel
from torch import Tensor, nn

from understudy.errors import UserError
from understudy.tasks.diffusion.process import Process
from understudy.tasks.diffusion.shapes import Shape


@dataclass(frozen=True)
class StepClock:
    """Tells a network the time as the number of one of `count` steps: 0 near the image, count - 1 at noise.

    diffusers' schedulers ask with these numbers, whole ones where the steps taken divide `count`.
    """

    count: int = 1024

    def __call__(self, t: Tensor) -> Tensor:
        """The numbers for times t in [0, 1]."""
        return self.count * t - 1

    def to_json(self) -> dict[str, Any]:
        """For the card of a saved network."""
        return {"kind": "steps", **asdict(self)}


@dataclass(frozen=True)
class LogsnrClock:
    """Tells a network the time as the original's networks have it: a function of logsnr, times 1000.

    Args:
        input: `inv_cos` (the published ones), `linear` or `sigmoid`.
        logsnr_min: of the schedule.
        logsnr_max: of the schedule.
    """

    input: Literal["inv_cos", "linear", "sigmoid"] = "inv_cos"
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __call__(self, t: Tensor) -> Tensor:
        """The numbers for times t in [0, 1]."""
        return self.at(Process(self.logsnr_min, self.logsnr_max).logsnr(t))

    def at(self, logsnr: Tensor) -> Tensor:
        """The numbers for log signal-to-noise ratios."""
        if self.input == "linear":
            return 1000 * (logsnr + 10) / 20
        if self.input == "sigmoid":
            return 1000 * torch.sigmoid(logsnr)
        return 1000 * torch.atan(torch.exp(-0.5 * logsnr.clamp(-20, 20))) / (math.pi / 2)

    def to_json(self) -> dict[str, Any]:
        """For the card of a saved network."""
        return {"kind": "logsnr", **asdict(self)}


@dataclass(frozen=True)
class TableClock:
    """Tells a network trained on another schedule the time at which that had our noise, between its first and last.

    Args:
        table: logsnr at each of its time steps, falling.
        logsnr_min: of our schedule.
        logsnr_max: of our schedule.
    """

    table: tuple[float, ...]
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __call__(self, t: Tensor) -> Tensor:
        """Its time steps, not whole ones, for our times t in [0, 1]."""
        return self.at(self.clamped(t))

    def clamped(self, t: Tensor) -> Tensor:
        """Our logsnr at times t, kept within what the network knows."""
        return Process(self.logsnr_min, self.logsnr_max).logsnr(t).clamp(self.table[-1], self.table[0])

    def at(self, logsnr: Tensor) -> Tensor:
        """The time steps, interpolated, that have these log signal-to-noise ratios."""
        falling = torch.tensor(self.table, dtype=logsnr.dtype, device=logsnr.device)
        rising = falling.flip(0).contiguous()
        above = torch.searchsorted(rising, logsnr.contiguous()).clamp(1, len(rising) - 1)
        low, high = rising[above - 1], rising[above]
        return len(rising) - 1 - (above - 1 + (logsnr - low) / (high - low))

    def to_json(self) -> dict[str, Any]:
        """For the card of a saved network."""
        return {"kind": "table", **asdict(self)}


Clock = StepClock | LogsnrClock | TableClock
_CLOCKS: dict[str, type[Any]] = {"steps": StepClock, "logsnr": LogsnrClock, "table": TableClock}


def clock_from_json(described: dict[str, Any]) -> Clock:
    """The clock that a saved network's card describes."""
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in described.items()
    }
    return _CLOCKS[str(options.pop("kind"))](**options)


class Network(nn.Module):
    """A UNet as a model of (z, t, y).

    Args:
        unet: diffusers' UNet2DModel.
        clock: how it is told the time.
    """

    def __init__(self, unet: UNet2DModel, clock: Clock | None = None) -> None:
        super().__init__()
        self.unet = unet
        self.clock: Clock = clock or StepClock()

    @property
    def conditional(self) -> bool:
        """Whether it wants to know the class."""
        return self.unet.class_embedding is not None

    @property
    def classes(self) -> int:
        """How many class numbers it knows, the one for "no class" included; 0 where it takes none."""
        return int(self.unet.config["num_class_embeds"] or 0)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        size = self.unet.config["sample_size"]
        height, width = (size, size) if isinstance(size, int) else size
        return int(self.unet.config["in_channels"]), int(height), int(width)

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Answer in the network's own prediction.

        Args:
            z: (N, C, H, W) noisy images.
            t: (N,) times in [0, 1].
            y: (N,) class numbers, where it is conditional.

        Raises:
            UserError: labels for a network without classes, or none for one with.
        """
        if y is not None and not self.conditional:
            raise UserError("this network knows no classes: it cannot be asked for any")
        if y is None and self.conditional:
            raise UserError("this network draws a class: say which")
        return self.unet(z, self.clock(t), class_labels=y).sample


def unet_config(shape: Shape, *, image: Sequence[int], outputs: int, classes: int, dropout: float) -> dict[str, Any]:
    """The arguments of UNet2DModel that make it the original's network.

    Args:
        shape: of the network.
        image: (C, H, W).
        outputs: channels that it gives.
        classes: class numbers that it takes; 0 for none.
        dropout: in the residual blocks.

    Raises:
        UserError: the size cannot be halved that often.
    """
    channels, height, width = image
    halvings = shape.levels - 1
    if height % 2**halvings or width % 2**halvings:
        often = "once" if halvings == 1 else f"{halvings} times"
        raise UserError(
            f"images of {height}x{width} cannot be halved {often}, which this UNet of {shape.levels} levels does: pad "
            f"them (data.pad_to={-(-max(height, width) // 2**halvings) * 2**halvings}) or take fewer levels"
        )
    attended = [height // 2**level in shape.attention for level in range(shape.levels)]
    down, up = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if shape.resample else ("DownBlock2D", "UpBlock2D")
    change = "resnet" if shape.resample else "conv"
    return {
        "sample_size": height if height == width else (height, width),
        "in_channels": channels,
        "out_channels": outputs,
        "block_out_channels": tuple(shape.channels * multiplier for multiplier in shape.multipliers),
        "layers_per_block": shape.blocks,
        "down_block_types": tuple("AttnDownBlock2D" if here else down for here in attended),
        "up_block_types": tuple("AttnUpBlock2D" if here else up for here in reversed(attended)),
        "downsample_type": change,
        "upsample_type": change,
        "downsample_padding": 0,  # with strided convolutions: the border is padded at the right and bottom alone
        "attention_head_dim": _head_dim(shape, attended),
        "norm_num_groups": shape.groups,
        "attn_norm_num_groups": shape.groups,  # without it, the middle's attention would have no norm
        "norm_eps": 1e-6,
        "resnet_time_scale_shift": "scale_shift",
        "time_embedding_dim": shape.embedding or 4 * shape.channels,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "dropout": dropout,
        "num_class_embeds": classes or None,
    }


def _head_dim(shape: Shape, attended: list[bool]) -> int | None:
    """Channels of a head, one number for all levels in diffusers; None for one head at each level."""
    widths = {shape.channels * multiplier for multiplier, here in zip(shape.multipliers, attended, strict=True) if here}
    widths.add(shape.channels * shape.multipliers[-1])  # the middle's
    part, what = (shape.head_dim, "head_dim") if shape.head_dim is not None else (shape.heads, "heads")
    for width in sorted(widths):
        if width % part:
            raise UserError(f"attention over {width} channels cannot be divided by {part}", where=what)
    if shape.head_dim is not None:
        return shape.head_dim
    return widths.pop() // shape.heads if shape.heads > 1 and len(widths) == 1 else None


def set_heads(unet: UNet2DModel, heads: int) -> None:
    """Give every attention the same number of heads, in place, where levels differ in width.

    UNet2DModel's configuration cannot say this, so it is told after building and after loading.
    """
    for module in unet.modules():
        if isinstance(module, Attention):
            module.heads = heads
            module.scale = (module.inner_dim // heads) ** -0.5


def plain_heads(unet: UNet2DModel) -> int | None:
    """The number of heads of all attentions where the configuration does not say it; None where it does."""
    if unet.config["attention_head_dim"] is not None:
        return None
    return next((module.heads for module in unet.modules() if isinstance(module, Attention) and module.heads > 1), None)


def build_unet(
    shape: Shape, *, image: Sequence[int], outputs: int | None = None, classes: int = 0, dropout: float = 0.0
) -> UNet2DModel:
    """Build a UNet whose residual branches and output start at zero, as the original's do.

    Args:
        shape: of the network.
        image: (C, H, W).
        outputs: channels that it gives; by default those of the image.
        classes: class numbers that it takes; 0 for none.
        dropout: in the residual blocks.

    Raises:
        UserError: the shape does not fit the images.
    """
    config = unet_config(shape, image=image, outputs=outputs or image[0], classes=classes, dropout=dropout)
    unet = UNet2DModel(**config)
    if config["attention_head_dim"] is None:
        set_heads(unet, shape.heads)
    for name, module in unet.named_modules():
        if name.endswith(("conv2", "to_out.0", "conv_out")) and isinstance(module, (nn.Conv2d, nn.Linear)):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    return unet


def without_dropout(network: nn.Module) -> nn.Module:
    """Turn dropout off for good, in place: students are trained without."""
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network
