"""Drawings of VMAS's worlds."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from support.render.scenes import BLACK, Label, Scene, Shape, arrow
from support.render.vmas_viewer import without_opengl

from qmix_trl.envs.vmas import VmasTeam
from qmix_trl.errors import MachineError, one_line
from qmix_trl.logs import say

LENGTH = 3.0  # of the arrow of the greatest force, in radii of an agent
LONGEST = 0.1  # such an arrow, of the height of VMAS's picture
BELOW = 0.015  # of the picture's height, from an agent to its number


class WorldPainter:
    """Draws a world as VMAS does, with the agents' numbers and forces, and needs no display.

    What a scenario adds by ``extra_render`` is left out, and said so once, if it fails.

    Args:
        env: on the eager engine.

    Attributes:
        step_seconds: the time of a step in the world.
    """

    def __init__(self, env: VmasTeam) -> None:
        self._env = env
        self.step_seconds: float = env.simulator.world.dt
        for agent in env.simulator.world.agents:
            agent._render_action = False  # lines of any length; here arrows show forces
        scenario = env.simulator.scenario
        scenario.extra_render = guarded(scenario.extra_render, env.name)

    def draw(self, e: int, action: list[int] | None) -> Scene:
        """Return the drawing of environment e after the team's actions; None after a reset.

        Raises:
            MachineError: if VMAS, or code of the scenario, fails to draw it.
        """
        try:
            with without_opengl():
                scene = self._env.render(mode="rgb_array", env_index=e)
        except Exception as error:  # a scenario's code may raise anything
            raise MachineError(
                f"{self._env.name} cannot be drawn: {one_line(error)}; with OpenGL, --renderer "
                "vmas may draw it"
            ) from error
        world = self._env.simulator.world
        shapes = list(scene.shapes)
        for agent in world.agents:
            shapes += force_arrow(agent, e, LONGEST * scene.window.height)
        for i, agent in enumerate(self._env.simulator.agents):
            shapes += number(i, agent, e, scene)
        window = scene.window.cut_to(shapes)
        for entity in world.entities:
            if entity.movable:
                window = window.around(place_of(entity, e), entity.shape.circumscribed_radius())
        return replace(scene, shapes=shapes, window=window)


class OpenGLPainter:
    """Draws a world by VMAS's own renderer, which needs OpenGL, and EGL or a display.

    Args:
        env: on the eager engine.

    Attributes:
        step_seconds: the time of a step in the world.
    """

    def __init__(self, env: VmasTeam) -> None:
        self._env = env
        self.step_seconds: float = env.simulator.world.dt

    def draw(self, e: int, action: list[int] | None) -> np.ndarray:
        """Return the picture of environment e, uint8 [H, W, 3].

        Raises:
            MachineError: if it cannot be drawn here.
        """
        try:
            return self._env.render(mode="rgb_array", env_index=e).copy()
        except Exception as error:  # pyglet and OpenGL raise many kinds
            raise MachineError(
                f"--renderer vmas: expected OpenGL, with EGL or a display, got {one_line(error)}; "
                "apt install libegl1 libgl1 libglu1-mesa libgl1-mesa-dri brings them; without "
                "--renderer none of them is needed"
            ) from error


def guarded(extra_render: Callable[..., list], name: str) -> Callable[..., list]:
    """Return a scenario's ``extra_render`` that adds nothing where it fails, and says so once.

    Args:
        extra_render: of the scenario.
        name: of the scenario.
    """
    failures: list[Exception] = []

    def extra(*args: Any, **kwargs: Any) -> list:
        try:
            return extra_render(*args, **kwargs)
        except Exception as error:  # a scenario's code may raise anything
            if not failures:
                say(f"drawn without {name}'s extra_render, which fails: {one_line(error)}")
            failures.append(error)
            return []

    return extra


def force_arrow(agent: Any, e: int, longest: float) -> list[Shape]:
    """Return an arrow of the force that an agent of VMAS applies; nothing without a force.

    Args:
        agent: of VMAS.
        e: the environment.
        longest: of all arrows.
    """
    force = agent.state.force[e].cpu().numpy()
    share = np.linalg.norm(force) / greatest_force(agent)
    if share == 0:
        return []
    start = np.array(place_of(agent, e))
    length = min(LENGTH * agent.shape.circumscribed_radius(), longest) * min(1.0, share)
    return arrow(start, start + length * force / np.linalg.norm(force), BLACK)


def number(i: int, agent: Any, e: int, scene: Scene) -> list[Shape]:
    """Return an agent's number below it, unless the scenario itself has a text on it.

    Args:
        i: the number.
        agent: of VMAS.
        e: the environment.
        scene: its drawing so far.
    """
    x, y = place_of(agent, e)
    radius = agent.shape.circumscribed_radius()
    labels = [shape for shape in scene.shapes if isinstance(shape, Label)]
    if any(np.hypot(label.place[0] - x, label.place[1] - y) <= radius for label in labels):
        return []
    return [Label(str(i), (x, y - radius - BELOW * scene.window.height), size=7)]


def place_of(entity: Any, e: int) -> list[float]:
    """Return the place of an entity of VMAS in environment e."""
    return entity.state.pos[e].tolist()


def greatest_force(agent: Any) -> float:
    """Return the greatest force that an agent of VMAS has along a dimension."""
    greatest = agent.action.u_range_tensor * agent.action.u_multiplier_tensor
    return max(float(greatest.max()), 1e-6)
