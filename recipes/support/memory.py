"""The memory and disk that a run takes, estimated from its configuration before it starts."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from support.components import build_env, without_checks
from support.room import free_disk, free_system_memory
from support.run_folder import REPLAY_FOLDER

from qmix_trl import EnvDims, env_dims
from qmix_trl.checkpoint.files import sweep
from qmix_trl.config.schema import (
    ForagingConfig,
    InPython,
    RecurrentConfig,
    RunConfig,
    VmasConfig,
    settings,
)
from qmix_trl.envs.compiled.engines.pool import LEAST_STATES, STATES_PER_ENV
from qmix_trl.envs.compiled.trace.walk import walk
from qmix_trl.errors import MachineError
from qmix_trl.keys import ACTION_MASK
from qmix_trl.trained import build_agent, build_mixer, build_weighting

CPU = torch.device("cpu")
NUMBER, INDEX = 4, 8  # bytes of float32 and int64; a flag has one
COPIES = 5  # of the weights: themselves, targets, gradients, two moments
SMALL = 0.01  # shares of all needs below which a message leaves a need out
BUFFERED = (VmasConfig, ForagingConfig)  # families whose environments fill buffers


@dataclass(frozen=True)
class Sizes:
    """The bytes of one environment at one step, by kind of entry.

    Attributes:
        of_agents: observations.
        observed: observations, state, and action masks.
        action: of the team.
        values: of all actions.
        rewards: the team's and the agents'.
        read: the memory that the agent reads: hidden state, and last action if it is used.
        written: the memory that the policy writes: hidden state and last action.
        simulated: the state of the simulation.
        weights: of agent and mixer; they do not depend on the number of environments.
    """

    of_agents: int
    observed: int
    action: int
    values: int
    rewards: int
    read: int
    written: int
    simulated: int
    weights: int


@dataclass(frozen=True)
class Need:
    """The bytes of a part of a run, and the keys of the configuration that decide them."""

    name: str
    n_bytes: int
    keys: str

    def __str__(self) -> str:
        return f"{self.name} {gib(self.n_bytes)} ({self.keys})"


def check_room(
    config: RunConfig,
    device: torch.device,
    runs: Path,
    resumed: Path | None = None,
    n_processes: int = 1,
) -> None:
    """Refuse a run that does not fit into the memory, or whose replay does not fit on the disk.

    Args:
        config: of the run.
        device: of the run.
        runs: the folder of runs.
        resumed: the folder of a run that goes on. Its checkpoint is read into the memory of the
            CPU; replay files that a killed process has left are removed.
        n_processes: the number of processes of this machine that each take as much, with a GPU of
            their own.

    Raises:
        ConfigError: if the environment cannot be made.
        MachineError: if the run does not fit.
    """
    sizes = sizes_of(config)
    replay = replay_need(config, sizes)
    needs = needs_of(config, sizes)
    if resumed is not None:
        sweep(resumed / REPLAY_FOLDER)
        loaded = replace(replay, name="replay in the checkpoint")
        _check("memory", [loaded], free_memory(CPU) // n_processes, "")
        needs += [loaded] if device.type == "cpu" else []
    if config.replay.storage == "memmap":
        _check("the disk", [replay], free_disk(runs) // n_processes, "")
    else:
        needs.append(replay)
    name = "the GPU's memory" if device.type == "cuda" else "memory"
    hint = " or set replay.storage=memmap" if replay in needs else ""
    sharing = n_processes if device.type == "cpu" else 1
    _check(name, needs, free_memory(device) // sharing, hint)


def _check(where: str, needs: list[Need], free: int, hint: str) -> None:
    """Refuse needs that together exceed the free bytes.

    Raises:
        MachineError: with the greatest of them.
    """
    needed = sum(need.n_bytes for need in needs)
    if needed > free:
        ordered = sorted(needs, key=lambda need: need.n_bytes, reverse=True)
        ordered = [need for need in ordered if need.n_bytes > SMALL * needed]
        raise MachineError(
            f"{where}: expected at most {gib(free)}, which are free, got a run of {gib(needed)}: "
            f"{'; '.join(map(str, ordered))}; lower these keys{hint}"
        )


def gib(n_bytes: int) -> str:
    """Return a number of bytes as text."""
    return f"{n_bytes / 2**30:,.2f} GiB"


def sizes_of(config: RunConfig) -> Sizes:
    """Return the sizes of one environment, seen in one or two of them on the CPU."""
    section = without_checks(config).env
    if isinstance(section, VmasConfig):
        section = replace(section, engine="eager")
    elif isinstance(section, InPython):
        section = replace(section, processes=1)
    n_envs = min(config.env.n_envs, 2 if isinstance(section, VmasConfig) else 1)
    env = build_env(replace(config, env=section), CPU, n_envs=n_envs, seed=0, reset_when_done=False)
    masked = ACTION_MASK in env.observation_spec.keys(True, True)
    simulated = 0
    if isinstance(section, VmasConfig):
        tensors = walk(env.simulator).tensors().values()
        simulated = sum(x.nbytes // n_envs for x in tensors if x.shape[:1] == (n_envs,))
    dims = env_dims(env)
    env.close()
    return sizes_from(config, dims, masked=masked, simulated=simulated)


def sizes_from(config: RunConfig, dims: EnvDims, *, masked: bool, simulated: int) -> Sizes:
    """Return the sizes of one environment.

    Args:
        config: its sections ``agent`` and ``mixer`` count.
        dims: of the environment.
        masked: whether it has action masks.
        simulated: the bytes of its simulation.
    """
    n, n_actions, agent = dims.n_agents, dims.n_actions, config.agent
    hidden = agent.hidden_dim if isinstance(agent, RecurrentConfig) else 0
    of_agents = NUMBER * n * dims.observation_dim
    return Sizes(
        of_agents=of_agents,
        observed=of_agents + NUMBER * dims.state_shape.numel() + n * n_actions * masked,
        action=INDEX * n,
        values=NUMBER * n * n_actions,
        rewards=NUMBER * (1 + n),
        read=NUMBER * n * (hidden + n_actions * agent.use_last_action),
        written=NUMBER * n * (hidden + n_actions),
        simulated=simulated,
        weights=NUMBER * _n_parameters(config, dims),
    )


def _n_parameters(config: RunConfig, dims: EnvDims) -> int:
    """Return the number of parameters of all networks, which take no memory here."""
    nowhere = torch.device("meta")
    networks = [build_agent(config, dims, nowhere), build_mixer(config, dims, nowhere)]
    weighting = build_weighting(config, dims, nowhere)
    networks += [] if weighting is None else [weighting.agent, weighting.mixer]
    return sum(p.numel() for network in networks if network for p in network.parameters())


def row_bytes(config: RunConfig, sizes: Sizes) -> int:
    """Return the bytes of a replay row, whose entries ``SequenceRows`` describes."""
    steps, n_cuts = config.collection.steps + config.replay.burn_in, 0
    if config.collection.rows == "slices":
        n_cuts = -(-(steps - 1) // config.env.max_steps)
    flags = 4  # is_init, mask, terminated, done
    return (
        (steps + 1) * sizes.observed
        + n_cuts * (sizes.observed + INDEX)
        + steps * (sizes.action + sizes.rewards + flags)
        + sizes.read
        + INDEX  # of the row
    )


def replay_need(config: RunConfig, sizes: Sizes) -> Need:
    """Return the need of the replay buffer."""
    rows = config.replay.capacity_rows
    keys = f"replay.capacity_rows={rows}, collection.steps={config.collection.steps}"
    return Need("replay", rows * row_bytes(config, sizes), keys)


def needs_of(config: RunConfig, sizes: Sizes) -> list[Need]:
    """Return the needs of a run but for the replay buffer.

    Evaluation and collection do not need their memory at the same time: the greater need counts.
    """
    n_envs, episodes = config.env.n_envs, config.evaluation.episodes
    collection, evaluation = _collection(config, sizes), _evaluation(config, sizes)
    states = sum(n + _pool_states(config, n) for n in (n_envs, episodes))
    environments = Need(
        "environments",
        states * (sizes.simulated + sizes.observed),
        f"env.n_envs={n_envs}, evaluation.episodes={episodes}",
    )
    larger = max(collection, evaluation, key=lambda need: need.n_bytes)
    return [larger, environments, _networks(config, sizes)]


def _networks(config: RunConfig, sizes: Sizes) -> Need:
    """Return the need of weights, targets, gradients and the optimiser's two moments."""
    shown = {"agent": settings(config.agent), "mixer": settings(config.mixer)}
    keys = [f"{section}.{key}={x}" for section, all in shown.items() for key, x in all.items()]
    widths = ", ".join(key for key in keys if "dim" in key)
    return Need("networks", COPIES * sizes.weights, widths)


def _step_bytes(sizes: Sizes, observed: int) -> tuple[int, int]:
    """Return the bytes of an environment's step in a batch without and with the agent's memory.

    Args:
        sizes: of the entries.
        observed: the bytes of an observation, which stands before and after the step.
    """
    flags = 16  # with the return before and after the step
    without = 2 * observed + sizes.action + sizes.values + sizes.rewards + flags
    return without, without + sizes.read + sizes.written


def _observed_once(config: RunConfig, sizes: Sizes) -> int:
    """Return the bytes of an observation as environments make it."""
    env = config.env
    shared = isinstance(env, BUFFERED) and env.state == "observations"
    return sizes.of_agents if shared else sizes.observed  # the state is a view of observations


def _collection(config: RunConfig, sizes: Sizes) -> Need:
    """Return the need of a batch that is collected while the one before it is still there."""
    env, steps = config.env, config.collection.steps
    if isinstance(env, BUFFERED) and config.collection.collector != "stock":
        observed = _observed_once(config, sizes)
        without, whole = _step_bytes(sizes, observed)
        before = whole if config.replay.burn_in else without
        each = before + whole + 2 * observed  # the last of each episode, and the true next ones
    else:
        each = 3 * _step_bytes(sizes, sizes.observed)[1]  # TorchRL's collector keeps one more
    return Need(
        "collection",
        env.n_envs * steps * each,
        f"env.n_envs={env.n_envs}, collection.steps={steps}",
    )


def _evaluation(config: RunConfig, sizes: Sizes) -> Need:
    """Return the need of TorchRL's rollout, a list of steps and then their stack, with a batch."""
    n_envs, steps = config.env.n_envs, config.collection.steps
    episodes, max_steps = config.evaluation.episodes, config.env.max_steps
    without, whole = _step_bytes(sizes, sizes.observed)
    listed = _step_bytes(sizes, _observed_once(config, sizes))[0] + sizes.written
    return Need(
        "evaluation, beside a batch",
        episodes * max_steps * (whole + listed) + n_envs * steps * without,
        f"evaluation.episodes={episodes}, env.max_steps={max_steps}, env.n_envs={n_envs}",
    )


def _pool_states(config: RunConfig, n_envs: int) -> int:
    """Return the number of initial states in the pool of an environment."""
    if not isinstance(config.env, VmasConfig) or config.env.engine == "eager":
        return 0
    return max(STATES_PER_ENV, math.ceil(LEAST_STATES / n_envs)) * n_envs


def free_memory(device: torch.device) -> int:
    """Return the bytes that a process can still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_system_memory()
