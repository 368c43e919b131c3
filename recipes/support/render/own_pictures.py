"""Pictures that environments of other packages draw themselves."""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from torchrl.envs import EnvBase, SerialEnv

from qmix_trl.envs.python_team import PythonTeam
from qmix_trl.envs.team import TeamEnv
from qmix_trl.errors import MachineError, one_line

LEAST_PIXELS = 300  # of the longer side


class PicturePainter:
    """Shows the pictures of environments that draw themselves.

    Args:
        env: made of single environments.

    Attributes:
        step_seconds: the time for which a step is shown.
    """

    step_seconds = 0.2

    def __init__(self, env: EnvBase) -> None:
        prefer_egl()
        self._env = env
        self._render = render_of(env)

    def draw(self, e: int, action: list[int] | None) -> np.ndarray:
        """Return the picture of environment e, uint8 [H, W, 3]; small ones are magnified.

        Raises:
            MachineError: if the environment has none.
        """
        try:
            picture = np.asarray(self._render(e))
        except Exception as error:  # code of other packages may raise anything
            raise MachineError(
                f"{self._env.how} cannot be drawn: {one_line(error)}; expected a picture, uint8 "
                "[H, W, 3], by its method render, which may need OpenGL, with EGL or a display"
            ) from error
        if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] not in (3, 4):
            raise MachineError(
                f"{self._env.how} cannot be drawn: expected a picture, uint8 [H, W, 3], by its "
                f"method render, got {picture.dtype} {list(picture.shape)}"
            )
        return magnified(picture[..., :3])


def prefer_egl() -> None:
    """Let pyglet, by which lbforaging and rware draw, open no window where there is no display."""
    if not os.environ.get("DISPLAY") and find_spec("pyglet") is not None:
        import pyglet  # pyright: ignore[reportMissingImports]

        pyglet.options["headless"] = True


def render_of(env: EnvBase) -> Callable[[int], Any]:
    """Return the function that returns the picture of an environment by its number."""
    if isinstance(env, PythonTeam):
        return env.render
    if isinstance(env, TeamEnv) and isinstance(env.env, SerialEnv):
        several = env.env
        return lambda e: several._envs[e].render()
    return env.render


def magnified(picture: np.ndarray) -> np.ndarray:
    """Return a picture whose longer side has at least ``LEAST_PIXELS``, by whole factors."""
    factor = -(-LEAST_PIXELS // max(picture.shape[:2]))
    return picture.repeat(factor, 0).repeat(factor, 1)
