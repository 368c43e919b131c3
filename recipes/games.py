"""Learn the papers' games and compare with what is exact: python recipes/games.py [--seeds 2]

VDN, QMIX and IQL play the two-step game, two matrix games and 60 random ones, all actions at
random. What they learned is printed beside what they should learn; games.png shows the same, and
summary.json holds {game: {algorithm: {seeds, tables, greedy_return, ..}}}.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from support.components import (
    build_agent,
    build_collector,
    build_env,
    build_exploration,
    build_loss,
    build_mixer,
    build_replay,
    build_update,
    n_batches,
    set_threads,
    stream_seed,
)
from support.games_report import GameReport, Outcome, draw, show
from support.projections import (
    Table,
    additive_projection,
    independent_fixed_point,
    joint_fixed_point,
    monotone_projection,
)
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qmix_trl import GreedyAction, env_dims, episode_returns, load_config, make_policy, with_memory
from qmix_trl.config import RunConfig
from qmix_trl.envs.game_tables import Game, make_game
from qmix_trl.errors import ConfigError, exit_on_mistake, nearest
from qmix_trl.logs import AUTO, make_run_folder, write_json

CONFIG = Path(__file__).parent / "configs" / "two_step_qmix.yaml"
CPU = torch.device("cpu")
# By what each game and each algorithm differs from the file. Where no table of a kind fits the
# payoffs, the draws of uniform actions are noise: many frames and large batches keep it small.
ONE_STEP = (
    "env.max_steps=1",
    "collection.steps=1",
    "update.per_batch=4",
    "update.optimizer.lr=0.2",
)
GAMES = {
    "two_step": (),
    "matrix_8": (
        *ONE_STEP,
        "env.scenario=matrix",
        "env.scenario_kwargs={payoff: [[8, -12, -12], [-12, 0, 0], [-12, 0, 0]]}",
        "env.n_envs=24000",
        "collection.total_frames=600000",
        "replay.capacity_rows=600000",
        "replay.batch_rows=24000",
        "update.per_batch=6",
    ),
    "matrix_12": (
        *ONE_STEP,
        "env.scenario=matrix",
        "env.scenario_kwargs={payoff: [[12, -0.1, -0.1], [-0.1, 0, 0], [-0.1, 0, 0]]}",
        "env.n_envs=6000",
        "collection.total_frames=150000",
        "replay.capacity_rows=150000",
        "replay.batch_rows=6000",
    ),
    "random_matrix": (
        *ONE_STEP,
        "env.scenario=random_matrix",
        "env.scenario_kwargs={n_games: 60}",
        "env.n_envs=3000",
        "collection.total_frames=120000",
        "replay.capacity_rows=120000",
        "replay.batch_rows=3000",
        "evaluation.episodes=120",
    ),
}
MIXERS = {"vdn": ("mixer={name: vdn}",), "qmix": (), "iql": ("mixer={name: none}",)}
EXACT: dict[str, Callable[[Game, float], Table]] = {
    "vdn": lambda game, gamma: joint_fixed_point(game, gamma, additive_projection),
    "qmix": lambda game, gamma: joint_fixed_point(game, gamma, monotone_projection),
    "iql": independent_fixed_point,
}


def learn(config: RunConfig) -> tuple[Table, float]:
    """Train as configured, but with a step size that falls to zero, so that tables converge.

    Returns:
        what ``learned_table`` returns, and the mean greedy return.
    """
    torch.manual_seed(stream_seed(config.seed, "weights"))
    env_seed, test_seed = (stream_seed(config.seed, stream) for stream in ("env", "test_env"))
    env = build_env(config, CPU, n_envs=config.env.n_envs, seed=env_seed, reset_when_done=False)
    dims = env_dims(env)
    agent, mixer = build_agent(config, dims, CPU), build_mixer(config, dims, CPU)
    explore = build_exploration(config, CPU)
    collector = build_collector(config, with_memory(env, agent), make_policy(agent, explore))
    replay = build_replay(config, CPU)
    update = build_update(config, build_loss(config, agent, mixer))
    schedule = CosineAnnealingLR(update.optimizer, n_batches(config) * config.update.per_batch)
    for batch in collector:
        replay.extend(batch)
        for _ in range(config.update.per_batch):
            update(replay.sample())
            schedule.step()
        collector.update_policy_weights_()
    collector.shutdown()
    test_env = build_env(
        config, CPU, n_envs=config.evaluation.episodes, seed=test_seed, reset_when_done=False
    )
    returns = episode_returns(
        with_memory(test_env, agent),
        make_policy(agent, GreedyAction()),
        max_steps=config.env.max_steps,
        seed=test_seed,
    )
    return learned_table(env.game, agent, mixer), returns.mean().item()


@torch.no_grad()
def learned_table(game: Game, agent: TensorDictModuleBase, mixer: nn.Module | None) -> Table:
    """Return Q_tot of every joint action in every state; without a mixer every agent's Q_a."""
    utilities, _ = agent.step(game.observation, None, None)  # [S, N, A]
    if mixer is None:
        return utilities.double().numpy()
    n_states, n_agents, n_actions = utilities.shape
    joint = torch.cartesian_prod(*[torch.arange(n_actions)] * n_agents)  # [A^N, N]
    chosen = torch.stack([utilities[:, n, joint[:, n]] for n in range(n_agents)], -1)
    state = torch.eye(n_states).unsqueeze(1).expand(-1, len(joint), -1)  # [S, A^N, S]
    total = mixer(chosen.unsqueeze(-1), state)  # [S, A^N, 1]
    return total.reshape(n_states, *[n_actions] * n_agents).double().numpy()


def play(name: str, seeds: Sequence[int]) -> GameReport:
    """Let every algorithm learn a game with every seed."""
    config = load_config(CONFIG, GAMES[name])
    set_threads(config.runtime.threads)
    game, gamma = make_game(config.env.scenario, config.env.scenario_kwargs), config.loss.gamma
    outcomes = {}
    for algorithm, mixer in MIXERS.items():
        start = time.perf_counter()
        learned = [
            learn(load_config(CONFIG, (*GAMES[name], *mixer, f"seed={seed}"))) for seed in seeds
        ]
        tables, returns = zip(*learned, strict=True)
        seconds = time.perf_counter() - start
        outcomes[algorithm] = Outcome(tables, returns, EXACT[algorithm](game, gamma), seconds)
    return GameReport(name, game, gamma, outcomes)


def main(names: Sequence[str], n_seeds: int, runs: str) -> Path:
    """Play games and report; return the run's folder.

    Raises:
        ConfigError: if a game is unknown, or there is no seed.
    """
    for name in names:
        if name not in GAMES:
            raise ConfigError(
                f"unknown game {name!r}{nearest(name, GAMES)}; known: {', '.join(GAMES)}"
            )
    if n_seeds < 1:
        raise ConfigError(f"expected --seeds of at least 1, got {n_seeds}")
    folder = make_run_folder(Path(runs), AUTO, stem="games")
    seeds = list(range(n_seeds))
    print(f"{folder}: {', '.join(names)}, {n_seeds} seeds of each algorithm", flush=True)
    reports = []
    for name in names:
        reports.append(play(name, seeds))
        show(reports[-1])
    write_json(folder / "summary.json", {report.name: report.summary(seeds) for report in reports})
    draw(reports, folder / "games.png")
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("games", nargs="*", help=f"of {', '.join(GAMES)}; all")
    parser.add_argument("--seeds", type=int, default=2, help="how many, from 0 on; 2")
    parser.add_argument("--runs", default="runs", help="where run folders are made")
    arguments = parser.parse_args()
    with exit_on_mistake():
        main(arguments.games or list(GAMES), arguments.seeds, arguments.runs)
