"""VMAS scenarios as TorchRL environments under the canonical contract.

TorchRL's own ``VmasEnv`` treats the time limit as a termination, has neither state nor team reward,
and draws from one random stream for all environments of a process. The environment here differs in
all three. An engine steps it (``compiled/engines/``): VMAS itself, or a compiled step.
"""

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase
from vmas.simulator.environment import Environment
from vmas.simulator.scenario import BaseScenario

from qmix_trl import keys
from qmix_trl.chosen import Chosen
from qmix_trl.envs.compiled.choose import ENGINES, Settings, make_engine, make_shadow
from qmix_trl.envs.compiled.engines.buffers import Buffers, layout_of
from qmix_trl.envs.compiled.engines.eager import EagerEngine
from qmix_trl.envs.compiled.trace.snapshot import outside_kept
from qmix_trl.envs.contract import (
    STATES,
    EnvDims,
    check_choice,
    check_keywords,
    check_share,
    check_sizes,
    env_repr,
    resets,
    set_flags,
    set_specs,
)
from qmix_trl.envs.infos import Infos, info_shapes
from qmix_trl.envs.others import NO_OP, OTHERS
from qmix_trl.envs.others_policy import ByPolicy
from qmix_trl.envs.packing import pack_buffers, pack_seen
from qmix_trl.envs.vmas_scenarios import (
    OF_ENVIRONMENT,
    boolean_keywords,
    is_own,
    own_class,
    scenario_keywords,
    scenario_of,
)
from qmix_trl.envs.vmas_simulation import TEAM_REWARDS, Task, VmasSimulation
from qmix_trl.errors import ConfigError, shown


def make_env(
    *,
    scenario: str | BaseScenario | type[BaseScenario],
    n_envs: int,
    max_steps: int,
    state: str,
    team_reward: str,
    seed: int,
    device: torch.device | str = "cpu",
    group: str | None = None,
    scenario_kwargs: Mapping[str, Any] | None = None,
    engine: str = "auto",
    verify: float = 0.001,
    reset_when_done: bool = True,
    info: bool = False,
    others: str | TensorDictModuleBase = NO_OP,
    actions_per_dimension: int | None = None,
) -> "VmasTeam":
    """Return ``n_envs`` copies of a VMAS scenario with discrete actions, stepped together.

    Args:
        scenario: a name in ``vmas_scenarios.SCENARIOS``, or your own scenario: an instance, which
            is copied; or a class, of which each simulation makes an instance, as itself or as
            "path/to/file.py", "path/to/file.py:Class" or "module:Class".
        n_envs: E.
        max_steps: the time limit in steps; reaching it truncates.
        state: "world", every entity's position, velocity, rotation and angular velocity; or
            "observations", the concatenation of the team's observations.
        team_reward: "mean" or "sum" of the agents' rewards, or "shared", the first agent's, for
            a scenario that gives all of them the same.
        seed: of the environment's own random stream.
        device: of the simulation.
        group: the group of agents that is the team, if the scenario has several; "all" for all
            agents. None if it has one.
        scenario_kwargs: keywords of the scenario.
        engine: "kernel", a compiled step; "inductor", the traced step compiled by torch; "eager",
            VMAS itself; or "auto", the first of these that runs the scenario. They differ in
            roundings and in the random numbers that they draw.
        verify: the largest share of the time that comparing recorded steps of a compiled engine
            with VMAS may take, after a first check of at most 20 steps; 0 compares none. It changes
            no number.
        reset_when_done: reset each environment when it is done. If not, it runs on until all are
            reset together, and these steps belong to no episode.
        info: show the infos of each step under ``("agents", "info", name)``, float [E, N, ...],
            zeros at resets; only the eager engine has them.
        others: the actions of agents outside the team: "no_op", "random", or "scripted" by the
            class ``HeuristicPolicy`` of the scenario's file; or a policy that reads their
            observations, which only the eager engine has.
        actions_per_dimension: the number of actions for each dimension of an agent's force, odd:
            evenly from the lowest to the highest. None for the scenario's own, in VMAS 3.

    Raises:
        ConfigError: if the scenario, a keyword or the group is unknown, a size is below 1, an
            option is none of the above, the scenario's code fails, or the scenario does not run on
            the engine.
        MachineError: if it would run on the engine with a compiler that works.
    """
    recipe = dict(locals())  # the arguments
    check_sizes(n_envs=n_envs, max_steps=max_steps)
    check_choice("state", state, STATES)
    check_choice("team_reward", team_reward, TEAM_REWARDS)
    check_choice("engine", engine, ENGINES)
    check_share("verify", verify)
    if isinstance(others, str):
        check_choice("others", others, OTHERS)
    n = actions_per_dimension
    if n is not None and (n < 3 or n % 2 == 0):
        raise ConfigError(
            "env.actions_per_dimension: expected an odd number of at least 3, so that one action "
            f"is no force, got {n}"
        )
    reasons = only_by_vmas(engine, info=info, by_policy=not isinstance(others, str))
    name = Path(scenario).name if isinstance(scenario, str) else None
    if isinstance(scenario, str) and is_own(scenario):
        scenario = own_class(scenario)
    own = scenario_of(scenario)
    name = name or type(own).__name__
    scenario_kwargs = dict(scenario_kwargs or {})
    check_scenario_kwargs(name, own, scenario_kwargs)
    task = Task(
        name=name,
        scenario=own,
        scenario_kwargs=scenario_kwargs,
        state=state,
        team_reward=team_reward,
        group=group,
        made_by=scenario if isinstance(scenario, type) else None,
        others=others if isinstance(others, str) else partial(ByPolicy, policy=others),
        actions_per_dimension=actions_per_dimension,
    )
    with outside_kept(own):
        probe = probed(task, n_envs)  # to see its sizes
    settings = Settings(task, layout_of(probe), n_envs, max_steps, seed, torch.device(device))
    return VmasTeam(
        settings,
        engine,
        recipe=recipe,
        action_counts=probe.action_counts,
        verify=verify,
        reset_when_done=reset_when_done,
        info_shapes=info_shapes(probe) if info else {},
        only_by_vmas=reasons,
        notes=filled_up(probe),
    )


def check_scenario_kwargs(
    name: str, scenario: BaseScenario, scenario_kwargs: Mapping[str, Any]
) -> None:
    """Refuse keywords that a scenario does not take, as far as its source tells.

    Raises:
        ConfigError: if a keyword is one of VMAS's environment, or the source lists all keywords
            and this is none of them, or text stands where the source has true or false.
    """
    texts = {keyword for keyword, value in scenario_kwargs.items() if isinstance(value, str)}
    for keyword in texts & (boolean_keywords(scenario) if texts else set()):
        raise ConfigError(
            f"env.scenario_kwargs.{keyword}: expected true or false, got "
            f"{shown(scenario_kwargs[keyword])!r}"  # which a scenario takes for true
        )
    for keyword in scenario_kwargs:
        if keyword in OF_ENVIRONMENT:
            raise ConfigError(
                f"env.scenario_kwargs.{keyword}: a setting of VMAS's environment, which never "
                "reaches a scenario; give the scenario's keyword another name"
            )
    known = scenario_keywords(scenario)
    if known is not None:
        check_keywords(f"VMAS scenario {name!r}", known, scenario_kwargs)


def probed(task: Task, n_envs: int) -> VmasSimulation:
    """Return a simulation of one environment, or of two if there are to be several.

    Raises:
        ConfigError: if the task cannot be made or stepped; it tells a task that runs with one
            environment only.
    """
    cpu = torch.device("cpu")
    try:
        return VmasSimulation(task, min(n_envs, 2), 0, cpu)
    except ConfigError as error:
        if n_envs == 1 or not isinstance(error.__cause__, Exception):
            raise
        try:
            VmasSimulation(task, 1, 0, cpu)
        except ConfigError:
            raise error from error.__cause__
        raise ConfigError(f"{error}; it runs with env.n_envs=1 only") from error.__cause__


def filled_up(simulation: VmasSimulation) -> dict[str, str]:
    """Return the sizes to which a team's observations and actions are filled up, if they differ."""
    names = [simulation.simulator.agents[i].name for i in simulation.team]
    notes = {}
    for of, sizes, how in (
        ("observations", simulation.observation_sizes, "numbers, by zeros"),
        ("actions", simulation.action_counts, "actions, by the mask"),
    ):
        if len({*sizes}) > 1:
            own = ", ".join(f"{name} {n}" for name, n in zip(names, sizes, strict=True))
            notes[of] = f"filled up to {max(sizes)} {how} ({own})"
    return notes


def only_by_vmas(wanted: str, *, info: bool, by_policy: bool) -> dict[str, str]:
    """Return why each engine that is faster than VMAS itself cannot serve; empty if it can.

    Args:
        wanted: one of ``ENGINES``.
        info: infos are to be shown.
        by_policy: the agents outside the team act by a policy.

    Raises:
        ConfigError: if one is wanted that cannot.
    """
    if not (info or by_policy):
        return {}
    what, reason = "shows no infos", "only VMAS itself computes infos"
    if by_policy:
        what = "has no policy of others"
        reason = "only VMAS itself asks a policy for the actions of others"
    if wanted not in ("auto", "eager"):
        raise ConfigError(f"env.engine: {wanted} {what}: {reason}; engine=eager does")
    return {name: reason for name in ENGINES[1:-1] if wanted == "auto"}


def going_on(recipe: Mapping[str, Any], state: Mapping[str, Any]) -> "VmasTeam":
    """Return the environment of a recipe that goes on from a ``run_state``, as after pickling.

    Args:
        recipe: the arguments of ``make_env``.
        state: its ``run_state``.

    Raises:
        ValueError: if another engine than that of the state runs here, with other numbers.
    """
    env = make_env(**recipe)
    env.load_run_state(state)
    return env


class VmasTeam(EnvBase):
    """A VMAS scenario whose team of agents takes discrete actions; made by ``make_env``.

    Args:
        settings: the task and its sizes.
        engine: one of ``ENGINES``.
        recipe: the arguments of ``make_env``, by which a copy is made in another process.
        action_counts: the number of actions of each agent; A is the largest.
        verify: as in ``make_env``.
        reset_when_done: reset each environment when it is done.
        info_shapes: the shapes [N, ...] of infos to show, by key.
        only_by_vmas: why other engines cannot serve, by name.
        notes: as the attribute.

    Attributes:
        engine: steps the environment.
        shadow: compares recorded steps with VMAS; None if nothing is to be compared.
        how: the engine's name, and why each faster engine does not run the scenario.
        notes: what the agents' observations and actions have been filled up to.

    Raises:
        ConfigError: if the scenario does not run on the engine.
    """

    batch_locked = True

    def __init__(
        self,
        settings: Settings,
        engine: str,
        *,
        recipe: Mapping[str, Any],
        action_counts: Sequence[int],
        verify: float,
        reset_when_done: bool,
        info_shapes: Mapping[tuple[str, ...], torch.Size],
        only_by_vmas: Mapping[str, str],
        notes: Mapping[str, str],
    ) -> None:
        super().__init__(device=settings.device, batch_size=torch.Size([settings.n_envs]))
        self.name = settings.task.name
        self.max_steps = settings.max_steps
        self.reset_when_done = reset_when_done
        self._settings, self._wanted, self._recipe = settings, engine, recipe
        self.notes = notes
        if info_shapes or only_by_vmas:
            self.engine, _ = make_engine(settings, "eager")
            self.how = Chosen("eager", only_by_vmas)
        else:
            self.engine, self.how = make_engine(settings, engine)
        self.shadow = make_shadow(self.engine, self.how.name, settings, verify)
        self._step_buffers = Buffers.empty(settings.n_envs, 1, self.engine.layout, self.device)
        self.seen = self._step_buffers.seen.new_zeros(settings.n_envs, self.engine.layout.size)
        self.n_actions = max(action_counts)
        self._action_counts = torch.tensor(action_counts)  # [N]
        set_specs(self, self._dims(self.n_actions), masked=bool(self.engine.layout.mask_dim))
        self._infos = Infos(info_shapes, self)

    def __repr__(self) -> str:
        return env_repr(self, self.name)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Return the parts of a copy: its maker, the arguments of ``make_env``, and the state."""
        try:
            return going_on, (self._recipe, self.run_state())
        except ConfigError:  # the scenario changed a value without a form: all of it is copied
            return super().__reduce_ex__(protocol)

    @property
    def compiled_loop(self) -> str | None:
        """The compiled loop that can take the steps of the engine; None if there is none."""
        return self.engine.compiled_loop

    @property
    def simulator(self) -> Environment:
        """VMAS's environment, which only the eager engine has.

        Raises:
            RuntimeError: if another engine steps.
        """
        if not isinstance(self.engine, EagerEngine):
            raise RuntimeError(
                f"simulator: expected the engine eager, got {self.how.name}, which runs no VMAS "
                "environment; make the environment with engine='eager'"
            )
        return self.engine.simulation.simulator

    @property
    def refusal(self) -> str | None:
        """Why the engine cannot take the next episodes; None if it can."""
        return self.engine.env_state.refusal

    def change_engine(self) -> None:
        """Go on with VMAS itself; the caller resets all environments, whose episodes end here.

        Raises:
            ConfigError: if an engine was asked for by name.
        """
        reasons = {**self.how.passed_over, self.how.name: f"{self.refusal}"}
        if self._wanted != "auto":
            raise ConfigError(
                f"env.engine: VMAS scenario {self.name!r} runs no longer on {self._wanted}: "
                f"{self.refusal}; engine=auto goes on with eager"
            )
        self._go_on_with_eager(reasons)
        warnings.warn(
            f"env.engine: VMAS scenario {self.name!r} goes on with {self.how}", stacklevel=2
        )

    def _go_on_with_eager(self, reasons: dict[str, str]) -> None:
        self.engine, how = make_engine(self._settings, "eager")
        if self.shadow is not None:
            self.shadow.stop("VMAS itself steps now")
        self.how = Chosen(how.name, reasons)

    def render(self, *args, **kwargs) -> Any:
        """Return VMAS's picture of an environment; only the eager engine has one.

        It draws no number from the random streams of the environment and of the process.

        Args:
            *args: as for ``render`` of VMAS's environment.
            **kwargs: as well: ``mode="rgb_array"``, ``env_index=0`` and others.
        """
        simulator = self.simulator
        with self.engine.simulation.random_stream.restored():
            return simulator.render(*args, **kwargs)

    def _dims(self, n_actions: int) -> EnvDims:
        layout = self.engine.layout
        return EnvDims(
            n_agents=layout.n_agents,
            observation_dim=layout.observation_dim,
            n_actions=n_actions,
            state_shape=layout.state(self.seen).shape[1:],
        )

    def _reset(self, tensordict: TensorDictBase | None = None, **kwargs) -> TensorDictBase:
        reset = resets(self, tensordict, reset_when_done=self.reset_when_done)  # [E, 1]
        if self.refusal is not None and reset.all():
            self.change_engine()
        # Without resets the last observation stays: observing again could draw noise again.
        if reset.any():
            self.engine.reset(reset[:, 0], self.seen)
        self._infos.reset(reset[:, 0])
        packed = pack_seen(self.seen.clone(), self.engine.layout).set(keys.IS_INIT, reset)
        self._infos.write(packed)
        return set_flags(packed, torch.zeros_like(reset), torch.zeros_like(reset))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        b, action = self._step_buffers, tensordict.get(keys.ACTION)
        self._check(action)
        b.action.copy_(action[:, None])
        if self.shadow is not None:
            b.seen[:, 0] = self.seen
            self.shadow.begin(b)
        self.engine.advance(b, 0, 1, reset_when_done=False)
        if self.shadow is not None:
            self.shadow.end(b)
        if self.refusal is not None:  # all episodes end here, and another engine follows
            b.truncated.fill_(True)
        self._infos.begin()
        self._read_infos()
        self.seen.copy_(b.seen[:, 1])
        packed = pack_seen(self.seen.clone(), self.engine.layout)
        packed.set(keys.AGENT_REWARD, b.agent_reward[:, 0, :, None].clone())
        packed.set(keys.REWARD, b.reward.clone())
        packed.set(keys.IS_INIT, torch.zeros_like(b.done))
        self._infos.write(packed)
        return set_flags(packed, b.terminated.clone(), b.truncated.clone())

    def _check(self, action: Tensor) -> None:
        """Refuse actions that are no numbers of actions; on a GPU reading them would wait for it.

        Raises:
            ValueError: if they are of another shape or type, or out of range.
        """
        shape = (*self.batch_size, self.engine.layout.n_agents)
        if action.shape != shape or action.is_floating_point():
            raise ValueError(
                f"VmasTeam: expected actions int64 {list(shape)}, got {action.dtype} "
                f"{list(action.shape)}"
            )
        if self.device.type == "cpu":
            wrong = (action < 0) | (action >= self._action_counts)  # [E, N]
            if wrong.any():
                _, agent = wrong.nonzero()[0].tolist()
                raise ValueError(
                    f"VmasTeam: expected actions from 0 to {self._action_counts[agent] - 1}, got "
                    f"{action[wrong][0]} of agent {agent}"
                )

    def _read_infos(self) -> None:
        if self._infos.shapes:
            self._infos.read(self.engine.simulation)

    def begin_buffers(self, n_steps: int) -> Buffers:
        """Return buffers of ``n_steps`` steps whose first observation is the present one."""
        (n_envs,) = self.batch_size
        self.engine.env_state.renew()
        buffers = Buffers.empty(n_envs, n_steps, self.engine.layout, self.device)
        buffers.seen[:, 0] = self.seen
        self._infos.begin()
        if self.shadow is not None:
            self.shadow.begin(buffers)
        return buffers

    def observation_at(self, buffers: Buffers, t: int) -> TensorDict:
        """Return the observation and state of step ``t``, a TensorDict [E]."""
        return pack_seen(buffers.seen[:, t], self.engine.layout)

    def step_buffers(self, buffers: Buffers, t: int, action: Tensor) -> Tensor:
        """Take step ``t`` by actions int64 [E, N], with resets; return done, bool [E, 1]."""
        self._check(action)
        buffers.action[:, t] = action
        self.engine.advance(buffers, t, 1, reset_when_done=self.reset_when_done)
        self._read_infos()
        if self.reset_when_done:
            self._infos.reset(buffers.done[:, t])
        return buffers.done[:, t, None]

    def pack_buffers(self, buffers: Buffers, batch: TensorDict) -> None:
        """Write all that buffers hold to a batch [E, T], under the keys of the contract.

        Raises:
            WrongStepError: if a step that is compared with VMAS differs.
        """
        if self.shadow is not None:
            self.shadow.end(buffers)
        pack_buffers(buffers, self.engine.layout, batch)
        self._infos.write_history(batch)
        self.seen.copy_(buffers.seen[:, -1])

    def _set_seed(self, seed: int | None) -> None:
        self.engine.env_state.seed(0 if seed is None else seed)

    def simulation_state(self) -> TensorDict:
        """Return copies of all tensors that later steps depend on."""
        return TensorDict({**self.engine.env_state.state(), "seen": self.seen.clone()}, ())

    def load_simulation_state(self, state: TensorDictBase) -> None:
        """Continue, bit for bit, from a ``simulation_state`` of the same engine.

        Raises:
            ValueError: if it is of an engine whose packed state has another shape.
        """
        values = dict(state.items())
        seen = values.pop("seen")
        self.engine.env_state.load_state(values)
        if self.shadow is not None:
            self.shadow.forget()
        self.seen.copy_(seen)

    def run_state(self) -> dict[str, Any]:
        """Return all that later steps depend on, and the engine that took the steps before."""
        return {
            "engine": self.how.name,
            "refusal": self.refusal,
            "simulation": self.simulation_state(),
            "infos": self._infos.run_state(),
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue from a ``run_state``, bit for bit on the same engine.

        If VMAS itself took the steps, and the engine is "auto", it goes on. Another compiled engine
        than before is warned of.

        Raises:
            ValueError: if the engine, the task or the number of environments does not fit.
        """
        saved, here = state["engine"], self.how.name
        if saved == "eager" != here and self._wanted == "auto":
            self._go_on_with_eager({**self.how.passed_over, here: "the run went on with VMAS"})
        elif "eager" in (saved, here) and saved != here:
            raise ValueError(
                f"env.engine: expected {saved}, which took the steps before, got {here}"
            )
        elif saved != here:
            warnings.warn(
                f"env.engine: {saved} took the steps before, {here} goes on: numbers may differ in "
                "their last bits",
                stacklevel=2,
            )
        self.load_simulation_state(state["simulation"])
        if self.how.name != "eager":
            self.engine.env_state.fresh.refusal = state["refusal"]
        self._infos.load_run_state(state["infos"])
