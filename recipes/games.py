"""Learn the papers' games and compare with exact solutions: python recipes/games.py [--seeds 2]

VDN, QMIX and IQL play the two-step game, two matrix games and 60 random ones, all actions at
random. The learned tables are printed next to the exact ones; games.png shows both, and
summary.json holds {game: {algorithm: {seeds, tables, greedy_return, ..}}}.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from support.command_line import games_arguments

if __name__ == "__main__":
    arguments = games_arguments(__doc__)  # before torch is imported: mistakes are told at once

import torch
from support.components import (
    build_collector,
    build_env,
    build_exploration,
    build_loss,
    build_replay,
    build_update,
    n_batches,
    stream_seed,
)
from support.evaluation import Evaluation
from support.game_settings import GAMES, MIXERS
from support.games_report import GameReport, Outcome, draw, show
from support.projections import (
    Table,
    additive_projection,
    independent_fixed_point,
    joint_fixed_point,
    monotone_projection,
)
from support.run_folder import SUMMARY_FILE
from support.threads import set_threads
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from qmix_trl import env_dims, load_config, make_policy, with_memory
from qmix_trl.config.schema import RunConfig
from qmix_trl.envs.game_tables import Game, make_game
from qmix_trl.errors import exit_on_mistake
from qmix_trl.logs import AUTO, make_run_folder, write_json
from qmix_trl.mixers.inputs import MixerInputs
from qmix_trl.trained import build_agent, build_mixer

CONFIG = Path(__file__).parent / "configs" / "two_step_qmix.yaml"
CPU = torch.device("cpu")
EXACT: dict[str, Callable[[Game, float], Table]] = {
    "vdn": lambda game, gamma: joint_fixed_point(game, gamma, additive_projection),
    "qmix": lambda game, gamma: joint_fixed_point(game, gamma, monotone_projection),
    "iql": independent_fixed_point,
}


def learn(config: RunConfig) -> tuple[Table, float]:
    """Train as configured, but with a step size that falls to zero, so that tables converge.

    Returns:
        the table that ``learned_table`` returns, and the mean greedy return.
    """
    seed = stream_seed(config.seed, "env")
    env = build_env(config, CPU, n_envs=config.env.n_envs, seed=seed, reset_when_done=False)
    dims = env_dims(env)
    torch.manual_seed(stream_seed(config.seed, "weights"))  # the networks draw their weights
    agent, mixer = build_agent(config, dims, CPU), build_mixer(config, dims, CPU)
    explore = build_exploration(config, CPU)
    collector = build_collector(config, with_memory(env, agent), make_policy(agent, explore))
    replay = build_replay(config, CPU)
    update = build_update(config, build_loss(config, agent, mixer, dims))
    schedule = CosineAnnealingLR(update.optimizer, n_batches(config) * config.update.per_batch)
    for batch in collector:
        replay.extend(batch)
        for _ in range(config.update.per_batch):
            update(replay.sample())
            schedule.step()
        collector.update_policy_weights_()
    collector.shutdown()
    greedy = Evaluation(config, CPU).greedy(agent)
    return learned_table(env.game, agent, mixer), greedy["mean"]


@torch.no_grad()
def learned_table(game: Game, agent: TensorDictModuleBase, mixer: nn.Module | None) -> Table:
    """Return Q_tot of every joint action in every state; without a mixer every agent's Q_a.

    Args:
        game: of N agents with A actions each, in S states.
        agent: without memory.
        mixer: over entries that the loss supplies; None for independent learners.

    Returns:
        [S, A, .., A] with an axis for each agent, or [S, N, A].
    """
    utilities, _ = agent.step(game.observation, None, None)  # [S, N, A]
    if mixer is None:
        return utilities.double().numpy()
    n_states, n_agents, n_actions = utilities.shape
    joint = torch.cartesian_prod(*[torch.arange(n_actions)] * n_agents)  # [A^N, N]
    inputs = MixerInputs(
        action_value=utilities.unsqueeze(1).expand(-1, len(joint), -1, -1),  # [S, A^N, N, A]
        action=joint.expand(n_states, -1, -1),  # [S, A^N, N]
        action_mask=None,
        state=torch.eye(n_states).unsqueeze(1).expand(-1, len(joint), -1),  # [S, A^N, S]
        hidden=None,
        observation=game.observation.unsqueeze(1).expand(-1, len(joint), -1, -1),
        others={},
    )
    total = mixer(*inputs.read(mixer.in_keys, {}))  # [S, A^N, 1]
    return total.reshape(n_states, *[n_actions] * n_agents).double().numpy()


def play(name: str, seeds: Sequence[int]) -> GameReport:
    """Let every algorithm learn a game with every seed."""
    config = load_config(CONFIG, GAMES[name])
    set_threads(config.runtime.threads)
    game, gamma = make_game(config.env.scenario, config.env.scenario_kwargs), config.loss.gamma
    outcomes = {}
    for algorithm, mixer in MIXERS.items():
        start = time.perf_counter()
        settings = *GAMES[name], *mixer
        learned = [
            learn(load_config(CONFIG, (*settings, f"seed={seed}", f"evaluation.seed={seed}")))
            for seed in seeds
        ]
        tables, returns = zip(*learned, strict=True)
        seconds = time.perf_counter() - start
        outcomes[algorithm] = Outcome(tables, returns, EXACT[algorithm](game, gamma), seconds)
    return GameReport(name, game, gamma, outcomes)


def main(names: Sequence[str], n_seeds: int, runs: str) -> Path:
    """Play games and report; return the run's folder."""
    folder = make_run_folder(Path(runs), AUTO, stem="games")
    seeds = list(range(n_seeds))
    print(f"{folder}: {', '.join(names)}, {n_seeds} seeds of each algorithm", flush=True)
    reports = []
    for name in names:
        reports.append(play(name, seeds))
        show(reports[-1])
    write_json(folder / SUMMARY_FILE, {report.name: report.summary(seeds) for report in reports})
    draw(reports, folder / "games.png")
    print(f"\n{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    return folder


if __name__ == "__main__":
    with exit_on_mistake():
        main(arguments.games or list(GAMES), arguments.seeds, arguments.runs)
