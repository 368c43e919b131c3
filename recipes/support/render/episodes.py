"""Episodes of a policy, with a drawing of each step."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from support.render.scenes import Scene
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from qmix_trl.keys import ACTION, DONE, REWARD, next_key


class Painter(Protocol):
    """Draws environments.

    Attributes:
        step_seconds: the time for which a step is shown.
    """

    step_seconds: float

    def draw(self, e: int, action: list[int] | None) -> Scene | np.ndarray:
        """Return the drawing of environment e after the team's actions; None after a reset.

        Args:
            e: the number of the environment.
            action: of the N agents.

        Returns:
            A scene, or a picture uint8 [H, W, 3].
        """
        ...


@dataclass(frozen=True)
class Moment:
    """A step of an episode.

    Attributes:
        drawing: a scene, or a picture uint8 [H, W, 3].
        step: 0 after the reset.
        total: the team's undiscounted return so far.
    """

    drawing: Scene | np.ndarray
    step: int
    total: float


Episode = list[Moment]  # from the reset to the end


@torch.no_grad()
def played(
    env: EnvBase,
    policy: TensorDictModuleBase,
    painter: Painter,
    *,
    n_episodes: int,
    max_steps: int,
    seed: int,
) -> list[Episode]:
    """Return the first episodes of some of the environments, as ``episode_returns`` plays them.

    Args:
        env: as for ``episode_returns``.
        policy: that acts.
        painter: of the environment.
        n_episodes: the number of environments that are drawn, the first ones.
        max_steps: the greatest length of an episode.
        seed: of the environment.
    """
    env.set_seed(seed)
    shown = env.reset()
    episodes = [[Moment(painter.draw(e, None), 0, 0.0)] for e in range(n_episodes)]
    live = set(range(n_episodes))
    for step in range(1, max_steps + 1):
        stepped = env.step(policy(shown))
        for e, action, reward, is_done in steps_of(stepped, live):
            moment = Moment(painter.draw(e, action), step, episodes[e][-1].total + reward)
            episodes[e].append(moment)
            if is_done:
                live.remove(e)
        if not live:
            break
        shown = env.maybe_reset(env.step_mdp(stepped))
    return episodes


def steps_of(
    stepped: TensorDictBase, live: set[int]
) -> Iterator[tuple[int, list[int], float, bool]]:
    """Yield number, actions, team reward and end of the environments that are live."""
    flat = stepped.reshape(-1)  # [E]
    action, reward, done = (flat.get(k) for k in (ACTION, next_key(REWARD), next_key(DONE)))
    for e in sorted(live):
        yield e, action[e].tolist(), float(reward[e]), bool(done[e])
