"""Runs as films: the environment that is drawn, its painter, and the episodes of a policy."""

from dataclasses import replace

import torch
from support.evaluation import Evaluation
from support.render.episodes import Episode, Painter, played
from support.render.grids import FieldPainter
from support.render.own_pictures import PicturePainter
from support.render.tables import TablePainter
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from qmix_trl.config.schema import InPython, PettingZooConfig, RunConfig, VmasConfig

PAINTERS = {"games": TablePainter, "foraging": FieldPainter}  # by family


class Recorder:
    """Plays and draws the test episodes of a configuration.

    Scenarios of VMAS are stepped by VMAS itself, whose world is drawn. It draws other starts from
    a seed than a kernel does, so the episodes of a run on a kernel are not those of its evaluation.

    Args:
        config: its sections ``env`` and ``evaluation`` count.
        device: of the environment and of the policies.
        renderer: "agg", or "vmas" for VMAS's own by OpenGL.

    Attributes:
        evaluation: the test episodes.
        painter: of their environment.
    """

    def __init__(self, config: RunConfig, device: torch.device, renderer: str = "agg") -> None:
        self._max_steps = config.env.max_steps
        self.evaluation = Evaluation(drawable(config), device)
        self.painter = painter_of(config, self.evaluation.env, renderer)

    def record(self, env: EnvBase, policy: TensorDictModuleBase, n_episodes: int) -> list[Episode]:
        """Return the first test episodes of a policy.

        Args:
            env: that of the evaluation, with the policy's memory.
            policy: that acts.
            n_episodes: their number.

        Raises:
            MachineError: if the environment cannot be drawn.
        """
        return played(
            env,
            policy,
            self.painter,
            n_episodes=n_episodes,
            max_steps=self._max_steps,
            seed=self.evaluation.seeds[0],
        )


def drawable(config: RunConfig) -> RunConfig:
    """Return a configuration whose environments can be drawn, in this process."""
    env = config.env
    if isinstance(env, VmasConfig):
        env = replace(env, engine="eager", verify=0.0)
    elif isinstance(env, InPython):
        env = replace(env, processes=1)
    if isinstance(env, PettingZooConfig):
        env = replace(env, scenario_kwargs={**env.scenario_kwargs, "render_mode": "rgb_array"})
    return replace(config, env=env)


def painter_of(config: RunConfig, env: EnvBase, renderer: str) -> Painter:
    """Return the painter of an environment.

    Args:
        config: of the environment.
        env: that is drawn.
        renderer: as for ``Recorder``.
    """
    if isinstance(config.env, VmasConfig):
        from support.render.worlds import OpenGLPainter, WorldPainter  # they import VMAS

        return OpenGLPainter(env) if renderer == "vmas" else WorldPainter(env)
    return PAINTERS.get(config.env.family, PicturePainter)(env)
