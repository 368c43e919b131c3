"""VMAS's own drawings as scenes, without OpenGL.

VMAS's ``Environment.render`` composes a drawing of geometry objects: of entities, sensors, messages
and whatever a scenario adds by ``extra_render``. A viewer then draws them by pyglet, which needs
OpenGL and a display or EGL. Here VMAS composes as ever, and the viewer is one that returns the
objects as a ``Scene``.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

import numpy as np
from support.render.scenes import Color, Label, Path, Polygon, Scene, Shape, Window

RENDERING = "vmas.simulator.rendering"
POINTS = 0.4  # of a line or a text, for a pixel of VMAS's window


@contextmanager
def without_opengl() -> Iterator[None]:
    """Let ``Environment.render`` return a ``Scene`` within a ``with`` block.

    The environment must not have drawn by OpenGL before.
    """
    import vmas.simulator

    with _pyglet_hidden():
        module = _rendering()
        outside = vmas.simulator.__dict__.get("rendering")
        vmas.simulator.__dict__["rendering"] = module
        with _modules_replaced({RENDERING: module}):
            try:
                yield
            finally:
                del vmas.simulator.__dict__["rendering"]
                if outside is not None:
                    vmas.simulator.__dict__["rendering"] = outside


@contextmanager
def _modules_replaced(replaced: Mapping[str, ModuleType]) -> Iterator[None]:
    """Let imports return other modules within a ``with`` block."""
    outside = {name: sys.modules.pop(name, None) for name in replaced}
    sys.modules.update(replaced)
    try:
        yield
    finally:
        for name, module in outside.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module


@contextmanager
def _pyglet_hidden() -> Iterator[None]:
    """Replace pyglet within a ``with`` block by a package that has every name and draws nothing."""
    names = ("pyglet", "pyglet.gl")
    with _modules_replaced({name: _Anything(name) for name in names}):
        yield


class _Anything(ModuleType):
    """A module with all attributes: functions that raise ImportError, and such a module, lib."""

    options: dict[str, Any] = {}

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _refuse

    @property
    def lib(self) -> ModuleType:
        """The module that VMAS asks for EGL."""
        return _Anything("pyglet.lib")


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise ImportError("pyglet is not used here")


@cache
def _rendering() -> ModuleType:
    """Return VMAS's classes of geometry in a module of their own, with a viewer without OpenGL."""
    spec = find_spec(RENDERING)
    if spec is None or spec.loader is None:
        raise ImportError(RENDERING)
    module: Any = module_from_spec(spec)
    spec.loader.exec_module(module)

    class TextLine(module.Geom):
        """A text at a place in pixels of the window."""

        def __init__(self, text: str = "", font_size: int = 15, x: float = 0, y: float = 0) -> None:
            super().__init__()
            self.text, self.font_size, self.x, self.y = text, font_size, x, y

        def set_text(self, text: str, font_size: int | None = None) -> None:
            """Change the text, and its size."""
            self.text, self.font_size = text, font_size or self.font_size

    module.TextLine, module.Viewer = TextLine, SceneViewer
    return module


class SceneViewer:
    """A viewer of VMAS whose pictures are scenes.

    Args:
        width: of VMAS's window in pixels.
        height: of VMAS's window in pixels.
        visible: as VMAS has it; nothing is shown.

    Attributes:
        geoms: the objects of all pictures.
        bounds: left, right, bottom and top of the window.
    """

    def __init__(self, width: int, height: int, visible: bool = False) -> None:
        self._size = width, height
        self.geoms: list[Any] = []
        self._once: list[Any] = []
        self.bounds: Any = None

    def set_bounds(self, left: Any, right: Any, bottom: Any, top: Any) -> None:
        """Set the part of the plane that is drawn.

        Args:
            left: a tensor or a number.
            right: as well.
            bottom: as well.
            top: as well.
        """
        self.bounds = np.array([float(side) for side in (left, right, bottom, top)])

    def add_onetime(self, geom: Any) -> None:
        """Add an object to the next picture."""
        self._once.append(geom)

    def add_onetime_list(self, geoms: Iterable[Any]) -> None:
        """Add objects to the next picture."""
        self._once.extend(geoms)

    def render(self, return_rgb_array: bool = False) -> Scene:
        """Return the picture."""
        window = Window(*self.bounds.tolist())
        drawn = [*self._once, *self.geoms]
        self._once = []
        return Scene([s for g in drawn for s in shapes_of(g, window, self._size)], window)


def shapes_of(
    geom: Any,
    window: Window,
    size: tuple[int, int],
    above: np.ndarray | None = None,
    color: Color | None = None,
) -> list[Shape]:
    """Return an object of VMAS's geometry as shapes.

    Args:
        geom: the object; one of an unknown class is left out.
        window: the part of the plane that is drawn.
        size: of VMAS's window in pixels.
        above: the matrix [3, 3] of the object that holds it; None if there is none.
        color: of that object.
    """
    matrix = (np.eye(3) if above is None else above) @ _matrix(geom)
    color = color or _color(geom)
    width = POINTS * max([1.0, *(float(a.stroke) for a in geom.attrs if hasattr(a, "stroke"))])
    kind = type(geom).__name__
    if kind == "FilledPolygon":
        edge = (*(channel / 2 for channel in color[:3]), color[3] / 2)
        return [Polygon(_moved(matrix, geom.v), color, edge if geom.draw_border else color)]
    if kind == "PolyLine":
        points = [*geom.v, geom.v[0]] if geom.close else geom.v
        return [Path(_moved(matrix, points), color, width)]
    if kind == "Line":
        return [Path(_moved(matrix, [geom.start, geom.end]), color, width)]
    if kind == "Compound":
        return [s for part in geom.gs for s in shapes_of(part, window, size, matrix, color)]
    if kind == "Grid":
        return _grid(geom, window, color, width)
    if kind == "TextLine":
        place = _in_plane(float(geom.x), float(geom.y), window, size)
        return [Label(geom.text, place, color, POINTS * geom.font_size, is_centred=False)]
    return []


def _color(geom: Any) -> Color:
    red, green, blue, alpha = (min(1.0, max(0.0, float(part))) for part in geom._color.vec4)
    return red, green, blue, alpha


def _matrix(geom: Any) -> np.ndarray:
    """Return the transforms of an object as one matrix [3, 3]; the last added is the outermost."""
    matrix = np.eye(3)
    for attr in reversed(geom.attrs):
        if hasattr(attr, "translation"):
            (x, y), (a, b) = attr.translation, attr.scale
            cos, sin = np.cos(attr.rotation), np.sin(attr.rotation)
            matrix = matrix @ np.array([[a * cos, -b * sin, x], [a * sin, b * cos, y], [0, 0, 1]])
    return matrix


def _moved(matrix: np.ndarray, points: Iterable[Iterable[Any]]) -> np.ndarray:
    """Return points under a matrix, float [K, 2]."""
    before = np.array([[*map(float, point), 1.0] for point in points])  # [K, 3]
    return before @ matrix[:2].T


def _grid(geom: Any, window: Window, color: Color, width: float) -> list[Shape]:
    """Return the lines of a grid over the window; VMAS's has a line through -length / 2."""
    shapes: list[Shape] = []
    places = np.arange(-geom.length / 2, geom.length / 2, geom.spacing)
    for x in places[(places >= window.left) & (places <= window.right)]:
        shapes.append(Path(np.array([(x, window.bottom), (x, window.top)]), color, width))
    for y in places[(places >= window.bottom) & (places <= window.top)]:
        shapes.append(Path(np.array([(window.left, y), (window.right, y)]), color, width))
    return shapes


def _in_plane(x: float, y: float, window: Window, size: tuple[int, int]) -> tuple[float, float]:
    """Return the place of a pixel of VMAS's window in the plane."""
    width, height = size
    return window.left + x / width * window.width, window.bottom + y / height * window.height
