"""Evaluate a trained run greedily: python recipes/evaluate.py runs/NAME [--episodes 100]

It prints the return beside those of doing nothing and of chance, on the same episodes.
"""

import argparse
from pathlib import Path

from support.components import (
    CONFIG_FILE,
    build_agent,
    build_env,
    choose_device,
    set_threads,
    stream_seed,
    summarize,
)

from qmix_trl import (
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    env_dims,
    episode_returns,
    load_config,
    load_weights,
    make_policy,
    with_memory,
)
from qmix_trl.config import MAX_SEED
from qmix_trl.errors import ConfigError, exit_on_mistake


def evaluate(
    folder: Path, *, episodes: int | None, seed: int | None, device: str
) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of the returns of three policies."""
    config = load_config(folder / CONFIG_FILE)
    episodes = config.evaluation.episodes if episodes is None else episodes
    seed = config.evaluation.seed if seed is None else seed
    if episodes < 2 or not 0 <= seed <= MAX_SEED:
        raise ConfigError(
            f"expected --episodes of at least 2 and --seed in [0, {MAX_SEED}], got {episodes} "
            f"and {seed}"
        )
    set_threads(config.runtime.threads)
    where = choose_device(device)
    test_seed = stream_seed(seed, "test_env")
    env = build_env(config, where, n_envs=episodes, seed=test_seed, reset_when_done=False)
    dims = env_dims(env)
    agent = build_agent(config, dims, where)
    load_weights(folder, agent)
    policies = {
        "greedy": make_policy(agent, GreedyAction()),
        "random": RandomPolicy(
            dims.n_actions, seed=stream_seed(seed, "random_policy"), device=where
        ),
        "no_op": NoOpPolicy(dims.n_actions),
    }
    env = with_memory(env, agent)
    return {
        name: summarize(
            episode_returns(env, policy, max_steps=config.env.max_steps, seed=test_seed)
        )
        for name, policy in policies.items()
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="a run's folder, such as runs/balance_quick-1")
    parser.add_argument("--episodes", type=int, help="how many; as in the run's configuration")
    parser.add_argument("--seed", type=int, help="of the episodes; as in the run's configuration")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    arguments = parser.parse_args()
    with exit_on_mistake():
        for name, returns in evaluate(**vars(arguments)).items():
            print(
                f"{name:>8}  return {returns['mean']:9.3f}, standard deviation "
                f"{returns['std']:.3f}, {returns['episodes']} episodes"
            )
