"""The rules of level-based foraging on tensors, many fields at once.

They are those of the package ``lbforaging`` 2.0.0 (https://github.com/semitable/lb-foraging).
``foraging.h`` is the same in C++, number for number.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from qmix_trl.envs.compiled.trace.draws import threefry
from qmix_trl.foraging_task import ForagingTask

N_ACTIONS, LOAD = 6, 5
# Row and column of the actions' moves: nothing, north, south, west, east, load.
MOVES = ((0.0, 0.0), (-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0), (0.0, 0.0))  # [A, 2]
ABSENT = (-1.0, -1.0, 0.0)  # row, column and level of a food that is eaten, or a unit out of sight


class Fields(NamedTuple):
    """E fields; U units are F foods, by rows and columns as they began, and then N players.

    Attributes:
        units: float32 [E, U, 3], whole numbers: row, column and level. Eaten foods are ``ABSENT``.
        spawned: float32 [E], the sum of the foods' levels at the beginning of the episode.
    """

    units: Tensor
    spawned: Tensor


class Stepped(NamedTuple):
    """The results of a step.

    Attributes:
        fields: after the step.
        reward: float32 [E, N], each player's.
        terminated: bool [E], whether no food is left.
    """

    fields: Fields
    reward: Tensor
    terminated: Tensor


class ForagingRules:
    """Starts, steps and observations of a task.

    Args:
        task: the task.
        device: of all tensors.
    """

    def __init__(self, task: ForagingTask, device: torch.device) -> None:
        to = {"device": device}
        self.task = task
        self._moves = torch.tensor(MOVES, **to)  # [A, 2]
        self._absent = torch.tensor(ABSENT, **to)
        self._last = torch.tensor([task.n_rows - 1.0, task.n_columns - 1.0], **to)
        foods = range(task.n_foods)
        players = range(len(foods), len(foods) + task.n_players)
        # [N, U], the order in which each player lists the units: itself before other players
        order = [[*foods, i, *(j for j in players if j != i)] for i in players]
        self._order = torch.tensor(order, **to)
        self._cells = torch.arange(task.n_rows * task.n_columns, **to)  # [C]
        self._cell_row = self._cells.div(task.n_columns, rounding_mode="floor")
        self._cell_column = self._cells % task.n_columns

    # ------------------------------------------------------------------ starts

    def spawn(self, seed: int, environments: Tensor, episodes: Tensor) -> Fields:
        """Return E fields at the beginning of an episode.

        First the players, then the foods are put one after another into a cell, every cell that is
        possible being equally likely. A food lies neither on the border nor on a player, nor next
        to another food or its corner, nor two cells from one in the same row or column. A food
        without a possible cell is absent.

        Args:
            seed: of the random numbers, which are a function of all three arguments.
            environments: int64 [E], the number of each environment.
            episodes: int64 [E], the number of its episode.
        """
        task = self.task
        draws = Draws(seed, environments, episodes)
        free = (self._cell_row < task.start_rows) & (self._cell_column < task.start_columns)  # [C]
        players, foods = [], []
        taken = torch.zeros(len(environments), len(free), dtype=torch.bool, device=free.device)
        for _ in range(task.n_players):
            players.append(_draw_cell(free & ~taken, draws))
            taken = taken | (self._cells == players[-1][:, None])
        free = (self._cell_row > 0) & (self._cell_row < task.n_rows - 1)
        free &= (self._cell_column > 0) & (self._cell_column < task.n_columns - 1)
        for _ in range(task.n_foods):
            foods.append(_draw_cell(free & ~taken, draws))
            taken = taken | self._is_near(foods[-1])
        cell = torch.stack([*torch.stack(foods).sort(0).values, *players], 1)  # [E, U]
        level = self._draw_levels(draws)
        units = torch.stack([*self._place(cell), level], -1).float()
        units = torch.where((cell < len(self._cells))[..., None], units, self._absent)
        return Fields(units, units[:, : task.n_foods, 2].sum(1))

    def _place(self, cell: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows and columns of cells [..]; C, which is no cell, lies below the field."""
        n_columns = self.task.n_columns
        return cell.div(n_columns, rounding_mode="floor"), cell % n_columns

    def _is_near(self, food: Tensor) -> Tensor:
        """Return whether a food in the cell ``food`` [E] keeps others from a cell: bool [E, C]."""
        row, column = self._place(food[:, None])
        rows, columns = (self._cell_row - row).abs(), (self._cell_column - column).abs()
        is_near = ((rows <= 1) & (columns <= 1)) | ((rows * columns == 0) & (rows + columns <= 2))
        return is_near & (food < len(self._cells))[:, None]

    def _draw_levels(self, draws: "Draws") -> Tensor:
        """Return the levels of all units, int64 [E, U]."""
        task = self.task
        lowest = torch.full_like(draws.episodes, task.min_player_level)
        highest = torch.full_like(lowest, task.max_player_level)
        players = torch.stack([draws.whole(lowest, highest) for _ in range(task.n_players)], 1)
        if task.max_food_level is None:
            highest = players.sort(1).values[:, :3].sum(1)
            if task.rules != "v3" and not task.force_coop:  # they leave out the upper end
                highest = (highest - 1).clamp(min=1)
        else:
            highest = torch.full_like(lowest, task.max_food_level)
        lowest = highest if task.force_coop else torch.full_like(lowest, task.min_food_level)
        foods = torch.stack([draws.whole(lowest, highest) for _ in range(task.n_foods)], 1)
        return torch.cat([foods, players], 1)

    # ------------------------------------------------------------------ steps

    def step(self, fields: Fields, action: Tensor) -> Stepped:
        """Return the results of a step.

        Players move, and then load. Players that load the food next to them take it if their
        levels sum to its level at least.

        Args:
            fields: before the step.
            action: int64 [E, N].
        """
        foods, players = fields.units.split([self.task.n_foods, self.task.n_players], 1)
        food_level, level = foods[..., 2], players[..., 2]
        place = self._moved(foods[..., :2], players[..., :2], action)
        distance = (place[:, :, None] - foods[:, None, :, :2]).abs().sum(-1)  # [E, N, F]
        loads = (distance == 1) & (action == LOAD)[..., None]
        strength = (loads * level[..., None]).sum(1)  # [E, F]
        taken = (strength >= food_level) & (strength > 0)
        reward = level[..., None] * food_level[:, None]  # [E, N, F]
        if self.task.normalize_reward:
            reward = reward / (strength * fields.spawned[:, None])[:, None]
        reward = torch.where(taken[:, None], reward, -self.task.penalty)
        # Foods lie so far apart that at most one is next to a player: one term is not 0.
        reward = torch.where(loads, reward, 0.0).sum(-1)
        foods = torch.where(taken[..., None], self._absent, foods)
        players = torch.cat([place, level[..., None]], -1)
        after = Fields(torch.cat([foods, players], 1), fields.spawned)
        return Stepped(after, reward, (foods[..., 2] == 0).all(1))

    def _moved(self, foods: Tensor, place: Tensor, action: Tensor) -> Tensor:
        """Return the places of the players after their moves: float32 [E, N, 2].

        A player stays where the field ends, where a food lies, and where another player also
        goes or wants to stay. Two players may change places. A player may enter the cell of one
        that wants to leave and is kept there: then both are in it.

        Args:
            foods: [E, F, 2].
            place: [E, N, 2].
            action: int64 [E, N].
        """
        wanted = torch.minimum((place + self._moves[action]).clamp(min=0), self._last)
        is_food = (wanted[:, :, None] == foods[:, None]).all(-1).any(-1)  # [E, N]
        wanted = torch.where(is_food[..., None], place, wanted)
        n_wanting = (wanted[:, :, None] == wanted[:, None]).all(-1).sum(-1)  # [E, N]
        return torch.where((n_wanting == 1)[..., None], wanted, place)

    # ------------------------------------------------------------------ observations

    def observe(self, fields: Fields) -> Tensor:
        """Return the observations, float32 [E, N, 3 U].

        Row, column and level of the foods in sight, of the agent itself, and of the other agents
        in sight. Rows and columns count from the first ones of the agent's window that are in the
        field. What is out of sight is ``ABSENT``, behind the foods and behind the agents.
        """
        task = self.task
        own = fields.units[:, task.n_foods :, :2]  # [E, N, 2]
        corner = (own - task.sight).clamp(min=0)
        listed = fields.units[:, self._order]  # [E, N, U, 3]
        place = listed[..., :2] - corner[:, :, None]
        food, player = place.split([task.n_foods, task.n_players], 2)
        # Agents are seen up to 2 ``sight`` from the corner: farther than foods at the border.
        end = (own - corner + task.sight)[:, :, None]
        sees_food = ((food >= 0) & (food <= end)).all(-1)  # [E, N, F]
        sees_player = ((player >= 0) & (player <= 2 * task.sight)).all(-1)  # [E, N, N]
        n_units = place.shape[2]
        slot = torch.cat([sees_food.cumsum(2), task.n_foods + sees_player.cumsum(2)], 2) - 1
        # All that is out of sight goes to a slot of its own, behind the others.
        slot = slot.where(torch.cat([sees_food, sees_player], 2), n_units)
        shown = self._absent.expand(*place.shape[:2], n_units + 1, 3).clone()
        shown.scatter_(
            2, slot[..., None].expand(-1, -1, -1, 3), torch.cat([place, listed[..., 2:]], -1)
        )
        return shown[:, :, :n_units].flatten(2)

    def world(self, fields: Fields) -> Tensor:
        """Return row, column and level of all units, float32 [E, 3 U]."""
        return fields.units.flatten(1)


class Draws:
    """The random numbers of starts, in order.

    Args:
        seed: the first word of the key.
        environments: int64 [E], the first word of the counter.
        episodes: int64 [E], the second word of the key.
    """

    def __init__(self, seed: int, environments: Tensor, episodes: Tensor) -> None:
        self.episodes = episodes
        self._key = torch.stack([torch.full_like(episodes, seed), episodes])  # [2, E]
        self._environments = environments
        self._n_drawn = 0

    def whole(self, lowest: Tensor, highest: Tensor) -> Tensor:
        """Return uniform whole numbers from ``lowest`` to ``highest``, int64 [E]."""
        word, _ = threefry(self._key, self._environments, self._n_drawn)
        self._n_drawn += 1
        return lowest + ((word * (highest - lowest + 1)) >> 32)


def _draw_cell(free: Tensor, draws: Draws) -> Tensor:
    """Return one of the free cells [E, C] of each field, int64 [E]; C where none is free."""
    n_free = free.sum(1)
    chosen = draws.whole(torch.zeros_like(n_free), n_free - 1)
    return (free.cumsum(1) <= chosen[:, None]).sum(1)
