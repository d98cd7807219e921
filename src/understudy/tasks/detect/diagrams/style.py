"""What a generated diagram looks like: colours, fonts, node shapes, lines, and what scanning and saving did to it."""

import colorsys
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from PIL import ImageFont

Colour = tuple[int, int, int]
NodeShape = Literal["rectangle", "rounded", "pill", "ellipse", "plain", "underlined"]

# Fonts of common systems, looked up by Pillow where the system keeps them; a machine without any uses Pillow's own.
_FONTS = (
    "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif.ttf", "DejaVuSansMono.ttf", "DejaVuSansCondensed.ttf",
    "LiberationSans-Regular.ttf", "LiberationSerif-Regular.ttf", "LiberationSans-Bold.ttf",
    "Arial.ttf", "Georgia.ttf", "Verdana.ttf", "Times New Roman.ttf",
)  # fmt: skip
_DARK_ON_LIGHT = ((255, 255, 255), (255, 255, 255), (250, 250, 245), (240, 244, 248), (255, 248, 225), (232, 240, 228))
_LIGHT_ON_DARK = ((24, 26, 32), (40, 44, 52), (12, 35, 64), (52, 40, 60))


@dataclass(frozen=True)
class Style:
    """The look of one diagram. Lengths are in pixels of the finished image.

    Args:
        background: colour of the paper.
        gradient: how much lighter or darker the lower edge is.
        grid: distance of faint grid lines; 0 for none.
        dark: light lines on a dark paper.
        node: shape of the nodes.
        fills: colours of nodes, by depth or branch; empty for outlines only.
        outlines: colours of outlines and connectors, by depth or branch.
        by_branch: colours follow the branch of the root a node belongs to; else its depth.
        outline: width of node outlines.
        line: width of connectors.
        dash: length of dashes and gaps; 0 for solid lines.
        arrow: head at the child's end.
        arrow_size: length of that head.
        font: file name; empty for Pillow's own.
        font_size: of ordinary nodes.
        root_scale: how much larger the root's letters are.
        padding: between letters and box, horizontal and vertical.
        smooth: drawn with soft edges.
    """

    background: Colour
    gradient: int
    grid: int
    dark: bool
    node: NodeShape
    fills: tuple[Colour, ...]
    outlines: tuple[Colour, ...]
    by_branch: bool
    outline: int
    line: int
    dash: int
    arrow: Literal["none", "filled", "open"]
    arrow_size: int
    font: str
    font_size: int
    root_scale: float
    padding: tuple[int, int]
    smooth: bool


@cache
def installed_fonts() -> tuple[str, ...]:
    """The fonts of our list that this machine has."""
    found = []
    for name in _FONTS:
        try:
            ImageFont.truetype(name, 12)
        except OSError:
            continue
        found.append(name)
    return tuple(found)


@cache
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """A font by file name and size in pixels; Pillow's own for an empty name."""
    return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)


def random_style(random: np.random.Generator, *, sideways: bool) -> Style:
    """Draw a look.

    Args:
        random: the generator to draw from.
        sideways: the tree grows to the sides, where words on lines (underlined nodes) are usual.
    """
    dark = bool(random.random() < 0.18)
    papers = _LIGHT_ON_DARK if dark else _DARK_ON_LIGHT
    background = papers[random.integers(len(papers))]
    node: NodeShape = random.choice(
        ["rectangle", "rounded", "pill", "ellipse", "plain", "underlined"],
        p=[0.3, 0.26, 0.1, 0.12, 0.1, 0.12] if sideways else [0.36, 0.27, 0.1, 0.17, 0.1, 0.0],
    )
    colourful = random.random() < 0.55
    hues = random.random() + np.arange(6) * random.uniform(0.08, 0.25)
    lines = tuple(_ink(random, background, hue if colourful else None) for hue in hues)
    if not colourful or random.random() < 0.5:
        lines = lines[:1]  # one colour for all lines, the nodes may still differ
    filled = random.random() < 0.6 and node not in ("plain", "underlined")
    fills = tuple(_fill(random, dark, hue if colourful else None) for hue in hues) if filled else ()
    fonts = installed_fonts()
    line = int(random.choice([1, 2, 3, 4, 5], p=[0.25, 0.4, 0.2, 0.1, 0.05]))
    return Style(
        background=background,
        gradient=int(random.integers(-35, 36)) if random.random() < 0.12 else 0,
        grid=int(random.integers(14, 50)) if random.random() < 0.08 else 0,
        dark=dark,
        node=node,
        fills=fills,
        outlines=lines,
        by_branch=bool(random.random() < 0.5),
        outline=int(random.integers(1, 4)) if not filled or random.random() < 0.6 else 0,
        line=line,
        dash=int(random.integers(4, 9)) if random.random() < 0.07 else 0,
        arrow=random.choice(["none", "filled", "open"], p=[0.65, 0.25, 0.1]),
        arrow_size=int(random.integers(7, 12)) + 2 * line,
        font=str(random.choice(fonts)) if fonts and random.random() < 0.9 else "",
        font_size=int(random.integers(11, 21)),
        root_scale=float(random.choice([1.0, 1.2, 1.5], p=[0.55, 0.25, 0.2])),
        padding=(int(random.integers(4, 18)), int(random.integers(3, 12))),
        smooth=bool(random.random() < 0.88),
    )


def _ink(random: np.random.Generator, background: Colour, hue: float | None) -> Colour:
    """A colour that can be seen on the paper: at least 70 of 255 away in some channel."""
    while True:
        saturation = 0 if hue is None else random.uniform(0.4, 1)
        colour = _from_hsv(hue or 0, saturation, random.uniform(0.0, 1.0))
        if max(abs(a - b) for a, b in zip(colour, background, strict=True)) >= 70:
            return colour


def _fill(random: np.random.Generator, dark: bool, hue: float | None) -> Colour:
    strong = random.random() < 0.5
    saturation = 0 if hue is None else random.uniform(0.45, 0.8) if strong else random.uniform(0.08, 0.3)
    value = random.uniform(0.3, 0.6) if dark else random.uniform(0.7, 0.9) if strong else random.uniform(0.85, 1)
    return _from_hsv(hue or 0, saturation, value)


def _from_hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def readable_on(colour: Colour) -> Colour:
    """Black or white, whichever is easier to read on a colour."""
    return (20, 20, 20) if 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2] > 128 else (245, 245, 245)
