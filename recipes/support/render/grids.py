"""Drawings of level-based foraging: a field with the levels of foods and players."""

from support.render.scenes import (
    BLACK,
    GRAY,
    NONE,
    WHITE,
    Label,
    Path,
    Polygon,
    Scene,
    Shape,
    Window,
    box,
    circle,
)

from qmix_trl.envs.foraging import ForagingTeam
from qmix_trl.envs.foraging_rules import LOAD

FOOD = (0.85, 0.25, 0.2, 1.0)
PLAYER = (0.3, 0.5, 0.8, 1.0)
LOADING = (0.95, 0.7, 0.1, 1.0)
MARGIN = 0.1  # cells around the field


class FieldPainter:
    """Draws a field: foods are squares and players discs, with their levels.

    A player that loads has a yellow ring, and each player its number at its right lower side.

    Args:
        env: of foraging.

    Attributes:
        step_seconds: the time for which a step is shown.
    """

    step_seconds = 0.3

    def __init__(self, env: ForagingTeam) -> None:
        self._env = env

    def draw(self, e: int, action: list[int] | None) -> Scene:
        """Return the drawing of environment e after the team's actions; None after a reset."""
        task = self._env.task
        units = self._env.units[e].tolist()
        shapes = field(task.n_rows, task.n_columns)
        for row, column, level in units[: task.n_foods]:
            if level > 0:
                shapes += food(row, column, level)
        for i, (row, column, level) in enumerate(units[task.n_foods :]):
            shapes += player(i, row, column, level, action is not None and action[i] == LOAD)
        sides = (-MARGIN, task.n_columns + MARGIN, -task.n_rows - MARGIN, MARGIN)
        return Scene(shapes, Window(*sides))


def field(n_rows: int, n_columns: int) -> list[Shape]:
    """Return an empty field; row 0 is the uppermost."""
    shapes: list[Shape] = [Polygon(box(0, -n_rows, n_columns, n_rows), WHITE)]
    for row in range(n_rows + 1):
        shapes.append(Path(box(0, -row, n_columns, 0)[:2], GRAY, 0.8))
    for column in range(n_columns + 1):
        shapes.append(Path(box(column, -n_rows, 0, n_rows)[1:3], GRAY, 0.8))
    return shapes


def centre(row: float, column: float) -> tuple[float, float]:
    """Return the centre of a cell."""
    return column + 0.5, -row - 0.5


def food(row: float, column: float, level: float) -> list[Shape]:
    """Return a food with its level."""
    square = Polygon(box(column + 0.25, -row - 0.75, 0.5, 0.5), FOOD, BLACK)
    return [square, Label(f"{level:.0f}", centre(row, column), size=11)]


def player(i: int, row: float, column: float, level: float, is_loading: bool) -> list[Shape]:
    """Return a player with its level and its number.

    Args:
        i: its number.
        row: its place.
        column: its place.
        level: of the player.
        is_loading: whether it has a ring.
    """
    x, y = centre(row, column)
    ring = LOADING if is_loading else NONE
    return [
        Polygon(circle((x, y), 0.45), ring),
        Polygon(circle((x, y), 0.35), PLAYER, BLACK),
        Label(f"{level:.0f}", (x, y), size=11),
        Label(f"{i}", (x + 0.37, y - 0.37), size=7),
    ]
