"""Environments that a function of the user's makes, as teams under the canonical contract."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torchrl.envs import EnvBase, SerialEnv

from qmix_trl import keys
from qmix_trl.envs.contract import check_sizes
from qmix_trl.envs.team import TeamEnv
from qmix_trl.envs.user_code import failing_line, load_function, name_of, split_name
from qmix_trl.envs.workers import Workers
from qmix_trl.errors import ConfigError, nearest, one_line
from qmix_trl.functional import greedy_action

OURS = {"n_envs": "env.n_envs", "device": "runtime.device"}  # a function gets those that it names
TRIED_STEPS = 2


def make_env(
    *,
    make: str | Callable[..., EnvBase],
    n_envs: int,
    max_steps: int,
    state: str,
    team_reward: str,
    seed: int,
    device: torch.device | str = "cpu",
    group: str | None = None,
    make_kwargs: Mapping[str, Any] | None = None,
    processes: int = 1,
    reset_when_done: bool = True,
) -> TeamEnv:
    """Return environments that a function makes, as a team (``TeamEnv``).

    A function with a parameter ``n_envs`` makes all environments at once, in a batch of [E]. Any
    other makes one, without a batch, and is called E times.

    Args:
        make: "path/to/file.py:function" or "module:function"; or the function, for one process.
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        state: "world", the environment's entry ``state``; or "observations".
        team_reward: as in ``TeamEnv``.
        seed: of the environments.
        device: of the team; the function gets it if it has a parameter ``device``.
        group: the team's group, if agents act in several.
        make_kwargs: keywords of the function.
        processes: over how many processes the environments are spread; with 1 they stay in this.
        reset_when_done: each environment is reset when it is done, with False too: it need not be
            able to go on. Rows of whole episodes leave out the steps that follow.

    Raises:
        ConfigError: if the function is not found or fails, it returns no environments with a
            team, their first steps fail, or a size does not fit them.
    """
    check_sizes(n_envs=n_envs, max_steps=max_steps, processes=processes)
    if callable(make) and processes > 1:
        raise ConfigError(
            f"env.processes: expected 1 with a function itself, got {processes}; name it by "
            "path/to/file.py:function or module:function, so that other processes find it"
        )
    maker = EnvMaker(make, dict(make_kwargs or {}), torch.device(device))
    of_team = {"group": group, "state": state, "team_reward": team_reward, "max_steps": max_steps}
    with errors_told(name_of(make) if callable(make) else make):
        maker.check()
        at_once = maker.takes("n_envs")
        tried = TeamEnv(maker(n_envs=n_envs) if at_once else maker(), **of_team)
        check_batch(tried, n_envs if at_once else None, processes)
        try_out(tried)
        if at_once:
            env = tried
        else:
            tried.close()
            env = TeamEnv(several(maker, n_envs, processes), **of_team)
            check_alike(env)
    env = env.to(device)
    env.set_seed(seed)
    return env


@dataclass(frozen=True)
class EnvMaker:
    """Makes environments by a function; it can be sent to another process.

    Args:
        make: as in ``make_env``.
        kwargs: keywords of the function.
        device: which it gets if it has a parameter of that name.
    """

    make: str | Callable[..., EnvBase]
    kwargs: dict[str, Any]
    device: torch.device

    def __call__(self, **sizes: int) -> EnvBase:
        """Return an environment, or several in a batch if their number is given."""
        ours = {"device": self.device} if self.takes("device") else {}
        return self._function(**ours, **sizes, **self.kwargs)

    @property
    def _function(self) -> Callable[..., EnvBase]:
        return self.make if callable(self.make) else load_function(self.make)

    def takes(self, name: str) -> bool:
        """Return whether the function has a parameter of a name."""
        return name in self._parameters()

    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self._function).parameters

    def check(self) -> None:
        """Refuse keywords that do not fit the function.

        Raises:
            ConfigError: if one is unknown, missing, or one of ``OURS``.
        """
        parameters = self._parameters()
        takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = [name for name, p in parameters.items() if p.kind in by_name and name not in OURS]
        for keyword in self.kwargs:
            if keyword in OURS:
                raise ConfigError(f"env.make_kwargs.{keyword}: expected in {OURS[keyword]} alone")
            if keyword not in known and not takes_all:
                raise ConfigError(
                    f"env.make_kwargs.{keyword}: unknown to the function"
                    f"{nearest(keyword, known)}; it takes: {', '.join(known) or 'none'}"
                )
        for name in known:
            if parameters[name].default is inspect.Parameter.empty and name not in self.kwargs:
                raise ConfigError(f"env.make_kwargs.{name}: missing; the function needs it")


def several(maker: EnvMaker, n_envs: int, processes: int) -> EnvBase:
    """Return environments in this process [E], or in P processes [P, E / P].

    Raises:
        ConfigError: if they cannot be spread evenly.
    """
    if processes == 1:
        return SerialEnv(n_envs, maker)
    if n_envs % processes:
        raise ConfigError(
            f"env.processes: expected a divisor of the number of environments, {n_envs}, got "
            f"{processes}"
        )
    return Workers(processes, partial(SerialEnv, n_envs // processes, maker))


def check_batch(env: EnvBase, n_envs: int | None, processes: int) -> None:
    """Refuse environments in another number than a function was called for.

    Args:
        env: the function's.
        n_envs: their number; None for one without a batch.
        processes: over which they are to be spread.

    Raises:
        ConfigError: if the numbers differ, or a batch is to be spread.
    """
    if n_envs is None and env.batch_size:
        raise ConfigError(
            f"expected one environment without a batch, got a batch of {list(env.batch_size)}; "
            "give the function a parameter n_envs to make all environments at once"
        )
    if n_envs is not None and env.batch_size != (n_envs,):
        raise ConfigError(
            f"expected a batch of [{n_envs}] environments, as n_envs says, got "
            f"{list(env.batch_size)}"
        )
    if n_envs is not None and processes > 1:
        raise ConfigError(
            "env.processes: expected 1, as the function makes all environments at once, got "
            f"{processes}"
        )


def check_alike(env: TeamEnv) -> None:
    """Refuse environments of several sizes.

    Raises:
        ConfigError: if they cannot be reset together.
    """
    try:
        env.reset()
    except RuntimeError as error:
        raise ConfigError(
            f"expected environments of equal sizes from all calls, got others: {one_line(error)}"
        ) from error


def try_out(env: TeamEnv) -> None:
    """Take a few steps by the first available actions, so that mistakes are told at once."""
    shown = env.reset()
    for _ in range(TRIED_STEPS):
        scores = torch.zeros(*shown[keys.OBSERVATION].shape[:-1], env.layout.n_actions)
        action = greedy_action(scores.to(shown.device), shown.get(keys.ACTION_MASK, None))
        _, shown = env.step_and_maybe_reset(shown.set(keys.ACTION, action))


@contextmanager
def errors_told(make: str, key: str = "env.make") -> Iterator[None]:
    """Turn any error of the user's code within a ``with`` block into one line.

    Args:
        make: as in ``make_env``.
        key: of a configuration, where ``make`` stands.

    Raises:
        ConfigError: if the block raises anything.
    """
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{key}: {make}: {error}") from error
    except Exception as error:  # the user's code may raise anything
        raise ConfigError(
            f"{key}: {make}: {one_line(error)} at {failing_line(error, split_name(make)[0])}"
        ) from error
