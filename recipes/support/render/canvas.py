"""Pictures of scenes, by matplotlib's Agg, which needs no display."""

from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.path import Path as Outline
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from support.render.scenes import NONE, WHITE, Label, Path, Polygon, Scene, Window

DPI = 100
AREA = 4.8 * 4.8  # square inches of a picture
EDGE = 0.8  # points of a polygon's outline
MARGIN = 0.04  # of a picture's width, on each side
LEAST, GREATEST = 0.5, 2.0  # width of a picture by its height


class Canvas:
    """Draws scenes in one window, which is constant.

    Args:
        window: the part of the plane that is drawn. A very narrow or flat one is widened.
    """

    def __init__(self, window: Window) -> None:
        aspect = min(GREATEST, max(LEAST, window.width / window.height))
        figure = Figure(figsize=((AREA * aspect) ** 0.5, (AREA / aspect) ** 0.5), dpi=DPI)
        self._canvas = FigureCanvasAgg(figure)
        self._axes = figure.add_axes((0, 0, 1, 1))
        self._axes.set_axis_off()
        half = (0.5 + MARGIN) * max(window.width, window.height * aspect)
        x, y = (window.left + window.right) / 2, (window.bottom + window.top) / 2
        self._axes.set(xlim=(x - half, x + half), ylim=(y - half / aspect, y + half / aspect))

    def picture(self, scene: Scene) -> np.ndarray:
        """Return a scene's picture, uint8 [H, W, 3]."""
        artists = self._artists(scene)
        self._canvas.draw()
        picture = np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        for artist in artists:
            artist.remove()
        return picture

    def _artists(self, scene: Scene) -> list[Artist]:
        """Return a scene's shapes on the axes; those that follow one another are one collection."""
        artists: list[Artist] = []
        runs = groupby(scene.shapes, lambda shape: MAKERS[type(shape)])
        for order, (make, shapes) in enumerate(runs):
            for artist in make(self._axes, list(shapes)):
                artist.set_zorder(order)
                artists.append(artist)
        return artists


def _outlines(axes: Any, shapes: list[Polygon | Path]) -> list[Artist]:
    collection = PathCollection(
        [Outline(closed(s.points) if isinstance(s, Polygon) else s.points) for s in shapes],
        facecolors=[s.color if isinstance(s, Polygon) else NONE for s in shapes],
        edgecolors=[s.edge if isinstance(s, Polygon) else s.color for s in shapes],
        linewidths=[EDGE if isinstance(s, Polygon) else s.width for s in shapes],
    )
    return [axes.add_collection(collection, autolim=False)]


def closed(points: np.ndarray) -> np.ndarray:
    """Return the points of a polygon [K, 2] with the first one behind them, [K + 1, 2]."""
    return np.concatenate([points, points[:1]])


def _labels(axes: Any, shapes: list[Label]) -> list[Artist]:
    texts = []
    for s in shapes:
        text = Text(*s.place, s.text, color=s.color, fontsize=s.size)
        text.set(ha="center" if s.is_centred else "left", va="center_baseline")
        text.set_path_effects([withStroke(linewidth=1.5, foreground=WHITE)])
        texts.append(axes.add_artist(text))
    return texts


MAKERS: dict[type, Any] = {
    Polygon: _outlines,
    Path: _outlines,
    Label: _labels,
}
