"""Small cooperative games with finitely many states, as tables: from the papers, and others."""

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
    """A game with finitely many states, which a team plays for one reward.

    Args:
        reward: float32 [S, A, .., A], the team's reward by state and joint action, with an axis
            for each of N agents.
        next_state: int64 [S, A, .., A], the next state by state and joint action.
        ends: bool [S], the states in which episodes end.
        starts: int64 [K], the states in which episodes start, with equal probability.
        observation: float32 [S, N, O], each agent's observation by state.
        action_mask: bool [S, N, A], True = available; None if all actions are always available.

    Raises:
        ValueError: if a table has another shape or dtype, contains a state outside [0, S), or a
            start is an end.
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
        self._check_shapes()
        self._check_states()

    def _check_shapes(self) -> None:
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

    def _check_states(self) -> None:
        for name in ("next_state", "starts"):
            states = set(getattr(self, name).unique().tolist())
            if not states or not states <= set(range(self.n_states)):
                raise ValueError(
                    f"Game: expected {name} to be states in [0, {self.n_states}), at least one, "
                    f"got {sorted(states)}"
                )
        if self.ends[self.starts].any():
            raise ValueError("Game: expected starts that episodes go on from")

    @property
    def n_states(self) -> int:
        """S, the number of states, including ends."""
        return len(self.observation)

    @property
    def n_agents(self) -> int:
        """N, the number of agents."""
        return self.observation.shape[1]

    @property
    def n_actions(self) -> int:
        """A, the number of each agent's actions."""
        return self.reward.shape[-1]


def matrix(*, payoff: Any) -> Game:
    """Return the one-step game with reward ``payoff[u_1, .., u_N]``.

    Args:
        payoff: an array or nested lists with an axis for each agent. If agents have different
            numbers of actions, the actions that an agent lacks are masked.

    Raises:
        ConfigError: if it is no array of finite numbers, has no axis or no action, or is too
            large.
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
    """Return one-step games with payoffs drawn uniformly from [-10, 10), as a single game.

    Each episode starts in one of the games; all agents observe which.

    Args:
        n_games: the number of games.
        n_agents: N.
        n_actions: A.
        seed: the seed of the payoffs.

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

    State 0 (the paper's state 1) pays nothing. There the first agent's action 0 leads to state 1
    (2A), which pays 7 for every joint action; its action 1 leads to state 2 (2B), which pays
    ``[[0, 1], [1, 8]]``. All agents observe the state.
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

    At t = 0 all agents observe one of ``n_cues`` equally likely cues. Afterwards they observe
    nothing, except at t = ``delay`` a flag that it is time to decide. The team is paid 1 if all
    agents then name the cue, else 0. Before t = ``delay`` only action 0 is available, so agents
    cannot record the cue in their last actions: the best team without a memory is paid
    ``1 / n_cues`` on average.

    The world state holds the cue to the end. A mixer that sees it may learn to ignore the agents
    before they have learned to remember, and QMIX gets stuck there; it learns with
    ``state="observations"``.

    Args:
        delay: the number of steps from the cue to the decision; 0 shows both at once.
        n_agents: N.
        n_cues: C, the number of cues and of actions.

    Raises:
        ConfigError: if ``delay`` is below 0, a size below 1, or there are too many states.
    """
    if delay < 0:
        raise ConfigError(f"expected delay of at least 0, got {delay}")
    n_states = (delay + 1) * n_cues + 1  # time * n_cues + cue; the last one is the end
    _check_counts(n_agents=n_agents, n_cues=n_cues)
    _check_table(n_states, n_agents, n_cues)
    state = torch.arange(n_states)  # [S]
    time, cue = state.div(n_cues, rounding_mode="floor"), state % n_cues
    is_decision = time == delay
    joint = [n_cues] * n_agents
    reward = torch.zeros(n_states, *joint)
    for c in range(n_cues):
        reward[(delay * n_cues + c, *[c] * n_agents)] = 1
    later = (state + n_cues).clamp(max=n_states - 1)
    next_state = later.reshape(-1, *[1] * n_agents).expand(-1, *joint)  # [S, C, .., C]
    shown_cue = F.one_hot(cue, n_cues) * (time == 0).unsqueeze(-1)  # [S, C]
    observation = torch.cat([shown_cue, is_decision.unsqueeze(-1)], -1).float()  # [S, C + 1]
    mask = is_decision.unsqueeze(-1) | (torch.arange(n_cues) == 0)  # [S, C]
    return Game(
        reward=reward,
        next_state=next_state,
        ends=state == n_states - 1,
        starts=torch.arange(n_cues),
        observation=observation.unsqueeze(1).expand(-1, n_agents, -1),
        action_mask=mask.unsqueeze(1).expand(-1, n_agents, -1),
    )


GAMES = {"matrix": matrix, "memory": memory, "random_matrix": random_matrix, "two_step": two_step}


def make_game(name: str, keywords: Mapping[str, Any]) -> Game:
    """Return the game of a name, made with the keywords of its function in ``GAMES``.

    Raises:
        ConfigError: if the name is unknown, or a keyword is unknown, missing or cannot be used.
    """
    if name not in GAMES:
        near = nearest(str(name), GAMES)
        raise ConfigError(f"env.scenario: unknown game {name!r}{near}; known: {', '.join(GAMES)}")
    _check_game_keywords(name, keywords)
    try:
        return GAMES[name](**keywords)
    except ConfigError as error:
        raise ConfigError(f"env.scenario_kwargs: game {name!r}: {error}") from None


def _check_game_keywords(name: str, keywords: Mapping[str, Any]) -> None:
    """Refuse keywords that are unknown, missing, or no integers where integers are expected."""
    parameters = inspect.signature(GAMES[name]).parameters
    check_keywords(f"game {name!r}", list(parameters), keywords)
    for keyword, parameter in parameters.items():
        if parameter.default is parameter.empty and keyword not in keywords:
            raise ConfigError(f"env.scenario_kwargs.{keyword}: missing; game {name!r} wants it")
        if parameter.annotation is int and type(keywords.get(keyword, 0)) is not int:
            got = keywords[keyword]
            raise ConfigError(f"env.scenario_kwargs.{keyword}: expected an integer, got {got!r}")


def _one_step(payoffs: Tensor, action_mask: Tensor | None) -> Game:
    """Return the game that starts in one of G payoffs and ends after one step.

    Args:
        payoffs: float32 [G, A, .., A], with an axis for each agent.
        action_mask: bool [G + 1, N, A]; None if all actions are available.
    """
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
    """Refuse tables that would not fit into memory."""
    # The number of agents is checked first, as a power of a huge one would take too long.
    if n_agents > MAX_AGENTS or n_states * max(n_states, n_actions**n_agents) > MAX_TABLE:
        raise ConfigError(
            f"expected at most {MAX_AGENTS} agents and tables of at most {MAX_TABLE:,} entries, "
            f"got {n_agents} agents, {n_actions} actions and {n_states} states"
        )
