"""Draw a scene as a small picture."""

import itertools
import math

import numpy as np
from PIL import Image, ImageDraw

from pipeline.download.scenes.world import Group, Scene

SIDE = 64
"""Width and height of a picture, in pixels."""

_CELL = 16
"""The picture is a grid of cells this wide; a cell holds at most one shape."""
_SUPERSAMPLING = 4
_RGB = {
    "red": (214, 32, 32),
    "green": (32, 150, 48),
    "blue": (36, 60, 214),
    "yellow": (240, 216, 32),
    "orange": (244, 132, 16),
    "purple": (124, 40, 156),
    "pink": (248, 136, 188),
    "cyan": (32, 200, 216),
    "white": (248, 248, 248),
    "grey": (128, 128, 128),
    "black": (12, 12, 12),
}
_RADIUS = {"small": (3.4, 4.2), "large": (6.2, 6.8)}
"""Narrowest and widest radius of a shape, in pixels."""
_REACH = 1.1
"""Distance of a shape's longest tip from its centre, in radii."""
_HOLE = 0.55
"""Radius of the hole of a ring, as a fraction of the ring's radius."""
_REGIONS = {
    None: [(range(4), range(4))],
    "above": [(range(4), range(2)), (range(4), range(2, 4))],
    "left": [(range(2), range(4)), (range(2, 4), range(4))],
}
"""Columns and rows of the cells that each group may lie in."""

Point = tuple[float, float]
Colour = tuple[int, ...]


def _around(corners: int, *radii: float) -> list[Point]:
    angles = [math.radians(-90.0 + 360 * i / corners) for i in range(corners)]
    lengths = [radii[i % len(radii)] for i in range(corners)]
    return [(r * math.cos(a), r * math.sin(a)) for a, r in zip(angles, lengths, strict=True)]


def _heart() -> list[Point]:
    turns = [2 * math.pi * i / 40 for i in range(40)]
    return [
        (
            math.sin(t) ** 3,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in turns
    ]


_CROSS = [(0.34, 1.0), (0.34, 0.34), (1.0, 0.34)]
_OUTLINES: dict[str, list[Point]] = {
    "circle": _around(40, 1.0),
    "square": [(-0.86, -0.86), (0.86, -0.86), (0.86, 0.86), (-0.86, 0.86)],
    "triangle": [(0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)],
    "star": _around(10, 1.1, 0.45),
    "diamond": [(0.0, -1.1), (0.75, 0.0), (0.0, 1.1), (-0.75, 0.0)],
    "cross": [
        *_CROSS,
        *((x, -y) for x, y in reversed(_CROSS)),
        *((-x, -y) for x, y in _CROSS),
        *((-x, y) for x, y in reversed(_CROSS)),
    ],
    "ring": _around(40, 1.0),
    "heart": _heart(),
}


def render(scene: Scene, rng: np.random.Generator) -> Image.Image:
    """Draw `scene` in RGB; `rng` moves the shapes, and varies their sizes and tints a little."""
    background = _tint(scene.background, rng)
    side = SIDE * _SUPERSAMPLING
    picture = Image.new("RGB", (side, side), background)
    canvas = ImageDraw.Draw(picture)
    for group, (columns, rows) in zip(scene.groups, _REGIONS[scene.relation], strict=True):
        cells = list(itertools.product(columns, rows))
        for index in rng.permutation(len(cells))[: group.count]:
            _draw_shape(canvas, group, cells[index], background, rng)
    return picture.reduce(_SUPERSAMPLING)


def _draw_shape(
    canvas: ImageDraw.ImageDraw,
    group: Group,
    cell: tuple[int, int],
    background: Colour,
    rng: np.random.Generator,
) -> None:
    radius = float(rng.uniform(*_RADIUS[group.size]))
    room = _CELL / 2 - 0.5 - radius * _REACH
    x, y = (_CELL * (place + 0.5) + float(rng.uniform(-room, room)) for place in cell)

    def fill(radius: float, colour: Colour) -> None:
        outline = [(x + dx * radius, y + dy * radius) for dx, dy in _OUTLINES[group.shape]]
        canvas.polygon([(_SUPERSAMPLING * x, _SUPERSAMPLING * y) for x, y in outline], colour)

    fill(radius, _tint(group.colour, rng))
    if group.shape == "ring":
        fill(radius * _HOLE, background)


def _tint(colour: str, rng: np.random.Generator) -> Colour:
    shifted = np.clip(np.array(_RGB[colour]) + rng.integers(-10, 11, size=3), 0, 255)
    return tuple(shifted.tolist())
