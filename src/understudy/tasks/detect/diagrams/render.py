"""Drawing a generated diagram: paper, connectors, nodes and words, then the wear of scanning and saving."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from understudy.tasks.detect.diagrams.forest import ROOT, depths_of, parents_first
from understudy.tasks.detect.diagrams.style import Colour, Style, load_font, readable_on


@dataclass(frozen=True)
class Scene:
    """What is to be drawn, in pixels of the finished image.

    Args:
        size: width and height.
        boxes: (N, 4) of the nodes.
        words: (N,) what is written in them; lines separated by a line break.
        parents: (N,) indices, -1 for roots.
        courses: for each child the points of its connector.
        notes: text that is no node (titles, remarks at lines): its left, top and letters.
        frame: a line around the drawing.
    """

    size: tuple[int, int]
    boxes: np.ndarray
    words: Sequence[str]
    parents: Sequence[int]
    courses: dict[int, np.ndarray]
    notes: Sequence[tuple[float, float, str]]
    frame: bool


def word_sizes(words: Sequence[str], style: Style, roots: Sequence[bool]) -> np.ndarray:
    """(N, 2) width and height of nodes that hold these words."""
    sizes = []
    for text, is_root in zip(words, roots, strict=True):
        font = load_font(style.font, _font_size(style, is_root))
        left, top, right, bottom = _MEASURE.multiline_textbbox((0, 0), text, font=font)
        width, height = right - left + 2 * style.padding[0], bottom - top + 2 * style.padding[1]
        if style.node == "ellipse":
            width, height = width * 1.2, height * 1.35
        sizes.append((max(width, 12), max(height, 10)))
    return np.array(sizes, dtype=float)


_MEASURE = ImageDraw.Draw(Image.new("L", (1, 1)))


def draw_scene(scene: Scene, style: Style) -> Image.Image:
    """Draw a scene, without wear."""
    scale = 2 if style.smooth else 1
    image = _paper(scene.size, style, scale)
    draw = ImageDraw.Draw(image)
    colours = _colour_index(scene.parents, style.by_branch)
    for child, points in scene.courses.items():
        _connector(draw, points * scale, style, style.outlines[colours[child] % len(style.outlines)], scale)
    for node, box in enumerate(scene.boxes):
        is_root = scene.parents[node] == ROOT
        _node(draw, box * scale, scene.words[node], style, colours[node], scale, _font_size(style, is_root))
    note_colour = readable_on(style.background)
    for left, top, text in scene.notes:
        font = load_font(style.font, style.font_size * scale)
        draw.text((left * scale, top * scale), text, font=font, fill=note_colour)
    if scene.frame:
        edge = 3 * scale
        draw.rectangle((edge, edge, image.width - edge, image.height - edge), outline=note_colour, width=scale)
    return image.reduce(2) if style.smooth else image


def _font_size(style: Style, is_root: bool) -> int:
    return round(style.font_size * style.root_scale) if is_root else style.font_size


def _paper(size: tuple[int, int], style: Style, scale: int) -> Image.Image:
    width, height = size[0] * scale, size[1] * scale
    if style.gradient:
        shades = np.linspace(0, style.gradient, height)[:, None, None] + np.array(style.background)
        column = np.clip(shades, 0, 255).astype(np.uint8)
        image = Image.fromarray(column).resize((width, height), Image.Resampling.NEAREST)
    else:
        image = Image.new("RGB", (width, height), style.background)
    if style.grid:
        draw, step = ImageDraw.Draw(image), style.grid * scale
        away = 14 if style.dark else -14
        red, green, blue = (channel + away for channel in style.background)
        for x in range(step // 2, width, step):
            draw.line((x, 0, x, height), fill=(red, green, blue), width=scale)
        for y in range(step // 2, height, step):
            draw.line((0, y, width, y), fill=(red, green, blue), width=scale)
    return image


def _colour_index(parents: Sequence[int], by_branch: bool) -> list[int]:
    if not by_branch:
        return depths_of(parents)
    index, branches = [0] * len(parents), 0
    for node in parents_first(parents):
        parent = parents[node]
        if parent != ROOT and parents[parent] == ROOT:
            branches += 1
            index[node] = branches
        elif parent != ROOT:
            index[node] = index[parent]
    return index


def _connector(draw: ImageDraw.ImageDraw, points: np.ndarray, style: Style, colour: Colour, scale: int) -> None:
    width = style.line * scale
    if style.arrow != "none":
        points = _arrow(draw, points, style, colour, scale)
    if not style.dash:
        draw.line([tuple(point) for point in points.tolist()], fill=colour, width=width, joint="curve")
        return
    lengths = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))])
    dash = style.dash * scale
    for begin in np.arange(0, lengths[-1], 2 * dash):
        at = np.linspace(begin, min(begin + dash, lengths[-1]), 5)
        piece = np.stack([np.interp(at, lengths, points[:, axis]) for axis in (0, 1)], axis=1)
        draw.line([tuple(point) for point in piece.tolist()], fill=colour, width=width)


def _arrow(draw: ImageDraw.ImageDraw, points: np.ndarray, style: Style, colour: Colour, scale: int) -> np.ndarray:
    """Draw the head at the last point; the course that is left for the line."""
    tip, size = points[-1], style.arrow_size * scale
    behind = next((p for p in points[::-1] if np.linalg.norm(p - tip) >= size), points[0])
    heading = (tip - behind) / max(float(np.linalg.norm(tip - behind)), 1e-9)
    side = np.array([-heading[1], heading[0]]) * size * 0.45
    base = tip - heading * size
    corners = [tuple(map(float, p)) for p in (base + side, tip, base - side)]
    if style.arrow == "open":
        draw.line(corners, fill=colour, width=style.line * scale, joint="curve")
        return points
    draw.polygon(corners, fill=colour)
    return np.concatenate([points[:-1], [tip - heading * size * 0.5]])


def _node(
    draw: ImageDraw.ImageDraw, box: np.ndarray, text: str, style: Style, colour: int, scale: int, font_size: int
) -> None:
    left, top, right, bottom = map(float, box)
    corners = (left, top, right - 1, bottom - 1)
    outline = style.outlines[colour % len(style.outlines)]
    fill = style.fills[colour % len(style.fills)] if style.fills else style.background
    width = style.outline * scale
    if style.node in ("plain", "underlined"):
        fill = style.background
    elif style.node == "rectangle":
        draw.rectangle(corners, fill=fill, outline=outline if width else None, width=width)
    elif style.node == "ellipse":
        draw.ellipse(corners, fill=fill, outline=outline if width else None, width=width)
    else:
        radius = (bottom - top) / 2 if style.node == "pill" else min(8 * scale, (bottom - top) / 3)
        draw.rounded_rectangle(corners, radius, fill=fill, outline=outline if width else None, width=width)
    if style.node == "underlined":
        low = bottom - max(1, style.line * scale / 2)
        draw.line((left, low, right, low), fill=outline, width=style.line * scale)
    font = load_font(style.font, font_size * scale)
    extent = draw.multiline_textbbox((0, 0), text, font=font, align="center")
    x = (left + right - extent[0] - extent[2]) / 2
    y = (top + bottom - extent[1] - extent[3]) / 2
    draw.multiline_text((x, y), text, font=font, fill=readable_on(fill), align="center")


def wear(image: Image.Image, random: np.random.Generator) -> Image.Image:
    """What screens, scanners and mail do to an image: resampling, blur, noise. Its size stays."""
    if random.random() < 0.15:
        share = random.uniform(0.6, 0.95)
        smaller = image.resize((round(image.width * share), round(image.height * share)), Image.Resampling.BILINEAR)
        image = smaller.resize(image.size, Image.Resampling.BICUBIC)
    if random.random() < 0.2:
        image = image.filter(ImageFilter.GaussianBlur(random.uniform(0.3, 0.9)))
    if random.random() < 0.35:
        image = _noisy(image, random.uniform(2, 12), random)
    return image


def _noisy(image: Image.Image, strength: float, random: np.random.Generator) -> Image.Image:
    """Gaussian noise from one tile, laid out with random shifts: a tile a pixel would cost more than the drawing."""
    tile = (random.standard_normal((256, 256, 3)) * strength).astype(np.int16)
    pixels = np.array(image).astype(np.int16)
    for top in range(0, image.height, 256):
        for left in range(0, image.width, 256):
            part = pixels[top : top + 256, left : left + 256]
            part += np.roll(tile, tuple(random.integers(0, 256, 2)), axis=(0, 1))[: part.shape[0], : part.shape[1]]
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
