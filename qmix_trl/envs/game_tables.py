"""Small cooperative games of finitely many states, as tables: the papers', and any other."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from qmix_trl.envs.contract import check_keywords
from qmix_trl.errors import ConfigError, nearest

MAX_TABLE = 10_000_000  # entries of one table
MAX_AGENTS = 20


@dataclass(frozen=True, kw_only=True)
class Game:
    """A game of finitely many states that a team plays for one reward.

    Args:
        reward: float [S, A, .., A] with an axis for each of N agents: of a joint action.
        next_state: int64 [S, A, .., A].
        ends: bool [S], the states that no episode goes on from.
        starts: int64 [K], the states that episodes begin in, each as likely.
        observation: float [S, N, O], what each agent sees.
        action_mask: bool [S, N, A], True = available; None if all are.

    Raises:
        ValueError: if a table has another shape or dtype, names a state that is not in [0, S), or
            an episode would begin where it ends.
    """

    reward: Tensor
    next_state: Tensor
    ends: Tensor
    starts: Tensor
    observation: Tensor
    action_mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.observation.dim() != 3 or self.reward.dim() < 2:
            raise ValueError(
                "Game: expected observation [S, N, O] and reward [S, A, .., A], got "
                f"{tuple(self.observation.shape)} and {tuple(self.reward.shape)}"
            )
        n_states, n_agents, observation_dim = self.observation.shape
        joint = (n_states, *[self.n_actions] * n_agents)
        expected = {
            "reward": (joint, torch.float32),
            "next_state": (joint, torch.int64),
            "ends": ((n_states,), torch.bool),
            "starts": ((self.starts.numel(),), torch.int64),
            "observation": ((n_states, n_agents, observation_dim), torch.float32),
            "action_mask": ((n_states, n_agents, self.n_actions), torch.bool),
        }
        for name, (shape, dtype) in expected.items():
            table = getattr(self, name)
            if table is not None and (table.shape != shape or table.dtype != dtype):
                raise ValueError(
                    f"Game: expected {name} of {dtype} and shape {shape} by an observation of "
                    f"{n_states} states and {n_agents} agents, got {table.dtype} and "
                    f"{tuple(table.shape)}"
                )
        for name in ("next_state", "starts"):
            states = set(getattr(self, name).unique().tolist())
            if not states or not states <= set(range(n_states)):
                raise ValueError(
                    f"Game: expected {name} to be states in [0, {n_states}), at least one, got "
                    f"{sorted(states)}"
                )
        if self.ends[self.starts].any():
            raise ValueError("Game: expected starts that episodes go on from")

    @property
    def n_states(self) -> int:
        """S, the states in which episodes have ended included."""
        return len(self.observation)

    @property
    def n_agents(self) -> int:
        """N."""
        return self.observation.shape[1]

    @property
    def n_actions(self) -> int:
        """A."""
        return self.reward.shape[-1]


def matrix(*, payoff: Any) -> Game:
    """Return the game of one step that pays ``payoff[u_1, .., u_N]``.

    Args:
        payoff: an array or nested lists of N axes, one for each agent. Where agents have
            different numbers of actions, those that an agent lacks are masked.

    Raises:
        ConfigError: if it is not an array of finite numbers with at least one axis and action.
    """
    try:
        table = torch.as_tensor(payoff, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"expected payoff to be an array of numbers: {error}") from None
    if table.dim() == 0 or table.numel() == 0 or not table.isfinite().all():
        raise ConfigError(
            "expected payoff to be finite float32 numbers with an axis for each agent, at least one"
        )
    n_agents, n_actions = table.dim(), max(table.shape)
    _check_table(2, n_agents, n_actions)
    square = torch.zeros(1, *[n_actions] * n_agents)
    square[(0, *map(slice, table.shape))] = table
    sizes = torch.tensor(table.shape)
    mask = (torch.arange(n_actions) < sizes.unsqueeze(-1)).expand(2, n_agents, n_actions)
    return _one_step(square, None if mask.all() else mask)


def random_matrix(*, n_games: int, n_agents: int = 2, n_actions: int = 3, seed: int = 0) -> Game:
    """Return games of one step whose payoffs are drawn uniformly from [-10, 10).

    An episode begins in one of the games, which all agents see.

    Args:
        n_games: how many are drawn.
        n_agents: N.
        n_actions: A.
        seed: of the payoffs.

    Raises:
        ConfigError: if a size is below 1, or the games have too many entries.
    """
    _check_counts(n_games=n_games, n_agents=n_agents, n_actions=n_actions)
    _check_table(n_games + 1, n_agents, n_actions)
    generator = torch.Generator().manual_seed(seed)
    shape = (n_games, *[n_actions] * n_agents)
    return _one_step(20 * torch.rand(shape, generator=generator) - 10, None)


def two_step() -> Game:
    """Return the two-step game of QMIX (Rashid et al. 2018, section 5.1 and appendix B).

    In state 0 (the paper's 1) nothing is paid, and the first agent's action 0 leads to state 1
    (2A), which pays 7 whatever is done; its action 1 to state 2 (2B), which pays
    ``[[0, 1], [1, 8]]``. All agents see the state.
    """
    reward = torch.zeros(4, 2, 2)
    reward[1] = 7
    reward[2] = torch.tensor([[0, 1], [1, 8]])
    next_state = torch.full((4, 2, 2), 3)
    next_state[0] = torch.tensor([[1, 1], [2, 2]])
    return Game(
        reward=reward,
        next_state=next_state,
        ends=torch.arange(4) == 3,
        starts=torch.tensor([0]),
        observation=torch.eye(4)[:, None].expand(4, 2, 4),
    )


def memory(*, delay: int, n_agents: int = 2, n_cues: int = 2) -> Game:
    """Return a game of ``delay + 1`` steps that only agents with a memory can win.

    At t = 0 all agents see one of ``n_cues`` cues, each as likely; afterwards they see nothing,
    and at t = ``delay`` that it is time to decide. The team is paid 1 if all agents then name the
    cue, else 0. Before, only action 0 is available, so that nothing can be noted in actions: the
    best team without a memory is paid ``1 / n_cues`` in the mean.

    The world state holds the cue to the end, and a mixer that sees it can fit the returns of one
    cue and shut the agents off at the others, before they have learned to remember: QMIX gets
    stuck there, but learns with ``state="observations"``.

    Args:
        delay: the steps from the cue to the decision; 0 shows both at once.
        n_agents: N.
        n_cues: also the number of actions.

    Raises:
        ConfigError: if ``delay`` is below 0, a size below 1, or there are too many states.
    """
    if delay < 0:
        raise ConfigError(f"expected delay of at least 0, got {delay}")
    n_states = (delay + 1) * n_cues + 1  # time * n_cues + cue; the last one is the end
    _check_counts(n_agents=n_agents, n_cues=n_cues)
    _check_table(n_states, n_agents, n_cues)
    state = torch.arange(n_states)
    time, cue = state.div(n_cues, rounding_mode="floor"), state % n_cues
    deciding = time == delay
    joint = [n_cues] * n_agents
    reward = torch.zeros(n_states, *joint)
    for c in range(n_cues):
        reward[(delay * n_cues + c, *[c] * n_agents)] = 1
    later = (state + n_cues).clamp(max=n_states - 1)
    next_state = later.reshape(-1, *[1] * n_agents).expand(-1, *joint)
    shown = F.one_hot(cue, n_cues) * (time == 0).unsqueeze(-1)  # [S, C]
    seen = torch.cat([shown, deciding.unsqueeze(-1)], -1).float()  # [S, C + 1]
    mask = deciding.unsqueeze(-1) | (torch.arange(n_cues) == 0)  # [S, C]
    return Game(
        reward=reward,
        next_state=next_state,
        ends=state == n_states - 1,
        starts=torch.arange(n_cues),
        observation=seen.unsqueeze(1).expand(-1, n_agents, -1),
        action_mask=mask.unsqueeze(1).expand(-1, n_agents, -1),
    )


GAMES = {"matrix": matrix, "memory": memory, "random_matrix": random_matrix, "two_step": two_step}


def make_game(name: str, keywords: Mapping[str, Any]) -> Game:
    """Return a game of that name.

    Raises:
        ConfigError: if there is none, or a keyword is unknown, missing or cannot be used.
    """
    if name not in GAMES:
        near = nearest(str(name), GAMES)
        raise ConfigError(f"env.scenario: unknown game {name!r}{near}; known: {', '.join(GAMES)}")
    parameters = inspect.signature(GAMES[name]).parameters
    check_keywords(f"game {name!r}", list(parameters), keywords)
    for keyword, parameter in parameters.items():
        if parameter.default is parameter.empty and keyword not in keywords:
            raise ConfigError(f"env.scenario_kwargs.{keyword}: missing; game {name!r} wants it")
        if parameter.annotation is int and type(keywords.get(keyword, 0)) is not int:
            got = keywords[keyword]
            raise ConfigError(f"env.scenario_kwargs.{keyword}: expected an integer, got {got!r}")
    try:
        return GAMES[name](**keywords)
    except ConfigError as error:
        raise ConfigError(f"env.scenario_kwargs: game {name!r}: {error}") from None


def _one_step(payoffs: Tensor, action_mask: Tensor | None) -> Game:
    """Return the game that begins in one of the payoffs [G, A, .., A] and ends after one step."""
    n_games, n_actions, n_agents = len(payoffs), payoffs.shape[-1], payoffs.dim() - 1
    state = torch.eye(n_games + 1)
    end = torch.zeros_like(payoffs[:1])
    return Game(
        reward=torch.cat([payoffs, end]),
        next_state=torch.full((n_games + 1, *[n_actions] * n_agents), n_games),
        ends=torch.arange(n_games + 1) == n_games,
        starts=torch.arange(n_games),
        observation=state.unsqueeze(1).expand(-1, n_agents, -1),
        action_mask=action_mask,
    )


def _check_counts(**counts: int) -> None:
    """Refuse counts below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ConfigError(f"expected {name} of at least 1, got {count}")


def _check_table(n_states: int, n_agents: int, n_actions: int) -> None:
    """Refuse tables that would not fit."""
    # Exponents before powers: a huge one would never be computed.
    if n_agents > MAX_AGENTS or n_states * max(n_states, n_actions**n_agents) > MAX_TABLE:
        raise ConfigError(
            f"expected at most {MAX_AGENTS} agents and tables of at most {MAX_TABLE:,} entries, "
            f"got {n_agents} agents, {n_actions} actions and {n_states} states"
        )
