"""Drawings as data: coloured shapes in a plane, in the order in which they are drawn."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Point = tuple[float, float]
Color = tuple[float, float, float, float]  # red, green, blue, alpha from 0 to 1

BLACK = (0.0, 0.0, 0.0, 1.0)
WHITE = (1.0, 1.0, 1.0, 1.0)
GRAY = (0.75, 0.75, 0.75, 1.0)
NONE = (0.0, 0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Polygon:
    """A filled polygon.

    Attributes:
        points: float [K, 2].
        color: of the inside.
        edge: the colour of its outline.
    """

    points: np.ndarray
    color: Color
    edge: Color = NONE


@dataclass(frozen=True)
class Path:
    """A line through points.

    Attributes:
        points: float [K, 2].
        color: of the line.
        width: in points of 1/72 inch.
    """

    points: np.ndarray
    color: Color
    width: float


@dataclass(frozen=True)
class Label:
    """A text around a point.

    Attributes:
        text: one line.
        place: its centre, or the middle of its left end.
        color: of the text.
        size: in points.
        is_centred: whether ``place`` is its centre.
    """

    text: str
    place: Point
    color: Color = BLACK
    size: float = 9.0
    is_centred: bool = True


Shape = Polygon | Path | Label


@dataclass(frozen=True)
class Window:
    """The part of the plane that is drawn."""

    left: float
    right: float
    bottom: float
    top: float

    @property
    def width(self) -> float:
        """The horizontal extent."""
        return self.right - self.left

    @property
    def height(self) -> float:
        """The vertical extent."""
        return self.top - self.bottom

    def around(self, place: Sequence[float], radius: float) -> "Window":
        """Return the smallest window that holds this one and a circle."""
        x, y = place
        return around_all([self, Window(x - radius, x + radius, y - radius, y + radius)])

    def cut_to(self, shapes: Iterable[Shape]) -> "Window":
        """Return the part of this window that holds the polygons and paths in it."""
        points = [s.points for s in shapes if not isinstance(s, Label)]
        if not points:
            return self
        (left, bottom), (right, top) = (f(np.concatenate(points), axis=0) for f in (np.min, np.max))
        return Window(
            max(self.left, float(left)),
            min(self.right, float(right)),
            max(self.bottom, float(bottom)),
            min(self.top, float(top)),
        )


@dataclass(frozen=True)
class Scene:
    """A drawing.

    Attributes:
        shapes: in the order in which they are drawn.
        window: the part of the plane that must be seen.
    """

    shapes: list[Shape]
    window: Window


def around_all(windows: Iterable[Window]) -> Window:
    """Return the smallest window that holds others."""
    sides = list(zip(*((w.left, w.right, w.bottom, w.top) for w in windows), strict=True))
    left, right, bottom, top = sides
    return Window(min(left), max(right), min(bottom), max(top))


def box(left: float, bottom: float, width: float, height: float) -> np.ndarray:
    """Return the corners of a rectangle, float [4, 2], from the lower left one to the right.

    Args:
        left: of that corner.
        bottom: of that corner.
        width: of the rectangle.
        height: of the rectangle.
    """
    right, top = left + width, bottom + height
    return np.array([(left, bottom), (right, bottom), (right, top), (left, top)])


def circle(centre: Sequence[float], radius: float, n_points: int = 30) -> np.ndarray:
    """Return points of a circle, float [n_points, 2]."""
    angles = np.linspace(0, 2 * np.pi, n_points, endpoint=False)
    return np.asarray(centre) + radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def arrow(start: Sequence[float], end: Sequence[float], color: Color) -> list[Shape]:
    """Return an arrow between two points, with a head of a third of its length."""
    tail, tip = np.asarray(start, float), np.asarray(end, float)
    along = (tip - tail) / 3
    across = np.array([-along[1], along[0]]) / 2.5
    base = tip - along
    head = np.stack([tip, base + across, base - across])
    return [Path(np.stack([tail, base]), color, 1.0), Polygon(head, color)]
