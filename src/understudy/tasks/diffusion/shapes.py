"""The shapes of UNets by name. No torch: recipes are checked against them.

The published ones are those of Salimans and Ho's configurations (google-research, diffusion_distillation/config).
"""

from pydantic import model_validator

from understudy.recipe.schema import Part, Positive, Switch


class Shape(Part):
    """A UNet as the original describes it.

    Args:
        channels: of the highest resolution.
        multipliers: of the channels, one a level; each level has half the height and width of the one before.
        blocks: residual blocks a level.
        attention: the heights at which there is self-attention; in the middle there always is.
        embedding: width of the time and class embedding; by default four times the channels.
        heads: attention heads at every level.
        head_dim: channels of one attention head; in place of `heads`.
        groups: of the group normalisations.
        resample: whether sizes change inside residual blocks, or by plain convolutions between them.
    """

    channels: Positive
    multipliers: tuple[Positive, ...]
    blocks: Positive = 1
    attention: tuple[Positive, ...] = ()
    embedding: Positive | None = None
    heads: Positive = 1
    head_dim: Positive | None = None
    groups: Positive = 32
    resample: Switch = True

    @model_validator(mode="after")
    def _channels_divide(self) -> "Shape":
        if not self.multipliers:
            raise ValueError("multipliers: is empty, name one a level")
        for multiplier in self.multipliers:
            channels = self.channels * multiplier
            if channels % self.groups:
                raise ValueError(f"groups: {channels} channels cannot be divided into {self.groups} groups")
        return self

    @property
    def levels(self) -> int:
        """Number of resolutions."""
        return len(self.multipliers)


SHAPES: dict[str, Shape] = {
    "tiny": Shape(channels=16, multipliers=(1, 2), blocks=1, attention=(), groups=8),
    "small": Shape(channels=32, multipliers=(1, 2), blocks=1, attention=(), groups=8),
    "medium": Shape(channels=32, multipliers=(1, 2, 2), blocks=2, attention=(8,), groups=8, head_dim=32),
    "cifar10": Shape(channels=256, multipliers=(1, 1, 1), blocks=3, attention=(8, 16), embedding=1024),
    "imagenet64": Shape(
        channels=192, multipliers=(1, 2, 3, 4), blocks=3, attention=(8, 16, 32), embedding=768, head_dim=64
    ),
    "lsun128": Shape(
        channels=64, multipliers=(1, 2, 4, 6, 8), blocks=3, attention=(8, 16, 32), embedding=768, head_dim=64
    ),
}
