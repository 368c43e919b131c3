"""Actors of Ray for tests: their environments, and Ray on this machine."""

import os
import signal
from pathlib import Path

from collect_tools import CounterEnv, make_agent

from qmix_trl import EpsilonGreedyAction, make_env, make_policy, with_memory
from qmix_trl.errors import ConfigError
from qmix_trl.ray_actors import RayActors

N_ACTORS, N_ENVS, STEPS = 2, 4, 8  # two environments for each actor
FRAMES = N_ENVS * STEPS  # of a batch


class Numbered(CounterEnv):
    """Counts its steps as ``CounterEnv``; its state tells the number of its actor."""

    def __init__(self, number):
        super().__init__()
        self.number = number

    def _seen(self, *flags):
        seen = super()._seen(*flags)
        seen["state"][:, 2] = self.number
        return seen


class Failing(CounterEnv):
    """Fails at its first step."""

    def _step(self, tensordict):
        raise ConfigError("env.scenario: broken")


class Deadly(CounterEnv):
    """Ends its process at its first step."""

    def _step(self, tensordict):
        os.kill(os.getpid(), signal.SIGKILL)


def small_agent():
    """Return a recurrent agent of ``CounterEnv`` that reads its last action."""
    return make_agent(CounterEnv())


class Maker:
    """Makes an actor's environments; it is sent to the actor.

    Args:
        make: makes them, without the agent's memory.
        number: of the actor, if ``make`` takes it.
    """

    def __init__(self, make, *number):
        self.make, self.number = make, number

    def __call__(self):
        env = self.make(*self.number)
        return with_memory(env, make_agent(env))


def actors_of(agent, explore=None, *, make=Numbered, n_batches, **settings):
    """Return two actors; the number of environments' actor is in their state."""
    explore = EpsilonGreedyAction(0.0, 0.0, 0, seed=1) if explore is None else explore
    return RayActors(
        lambda number: Maker(make, *([number] if make is Numbered else [])),
        make_policy(agent, explore),
        **{
            "n_actors": N_ACTORS,
            "n_envs": N_ENVS,
            "rows": "slices",
            "steps": STEPS,
            "n_batches": n_batches,
            **settings,
        },
    )


class WithoutCompiler:
    """Makes VMAS balance on a host without a compiler and without kernels built before.

    Args:
        empty: an empty folder.
    """

    def __init__(self, empty):
        self.empty = empty

    def __call__(self):
        os.environ.update(PATH=self.empty, CXX="", QMIX_TRL_CACHE=self.empty)
        return balance()


def balance():
    """Return VMAS balance on the fastest engine of a host."""
    return make_env(
        "vmas",
        scenario="balance",
        n_envs=2,
        max_steps=5,
        state="world",
        team_reward="mean",
        seed=0,
        verify=0.0,
    )


def balance_agent():
    """Return a recurrent agent of ``balance``."""
    return make_agent(balance())


def descendants(number):
    """Return the numbers of a process's children, and of theirs, and so on."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, waiting = [], [number]
    while waiting:
        children = parents.get(waiting.pop(), [])
        found += children
        waiting += children
    return found


def listening(numbers):
    """Return the addresses, in hexadecimal digits, on which processes wait for connections."""
    sockets = set()
    for number in numbers:
        for file in Path(f"/proc/{number}/fd").glob("*"):
            try:
                sockets.add(os.readlink(file))
            except OSError:  # it is closed
                continue
    lines = []
    for table in ("tcp", "tcp6"):
        lines += Path(f"/proc/net/{table}").read_text().splitlines()[1:]
    fields = [line.split() for line in lines]
    return [
        x[1].partition(":")[0] for x in fields if x[3] == "0A" and f"socket:[{x[9]}]" in sockets
    ]
