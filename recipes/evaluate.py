"""Evaluate a trained run greedily: python recipes/evaluate.py runs/NAME [--episodes 100]

It prints the returns of the greedy policy, of random actions and of doing nothing, in the same
episodes.
"""

from pathlib import Path

from support.command_line import evaluation_arguments, evaluation_config

if __name__ == "__main__":
    arguments = evaluation_arguments(__doc__)  # before torch is imported: mistakes are told at once

from support.commands import typed
from support.components import build_agent, choose_device, set_threads
from support.evaluation import Evaluation
from support.sources import with_sources

from qmix_trl import load_weights
from qmix_trl.errors import exit_on_mistake


def evaluate(
    folder: Path, *, episodes: int | None, seed: int | None, device: str
) -> dict[str, dict[str, float]]:
    """Return mean, standard deviation and number of the returns of three policies.

    Args:
        folder: of the run.
        episodes: their number; None takes the run's.
        seed: of the episodes; None takes the run's.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: if the folder is no run's, or a number is out of bounds.
        MachineError: if the machine lacks the device.
    """
    config = with_sources(evaluation_config(folder, episodes, seed), folder)
    set_threads(config.runtime.threads)
    where = choose_device(device, "--device")
    evaluation = Evaluation(config, where)
    agent = build_agent(config, evaluation.dims, where)
    load_weights(folder, agent)
    return {"greedy": evaluation.greedy(agent), **evaluation.baselines()}


if __name__ == "__main__":
    with exit_on_mistake():
        for name, returns in evaluate(**vars(arguments)).items():
            print(
                f"{name:>8}  return {returns['mean']:9.3f}, standard deviation "
                f"{returns['std']:.3f}, {returns['episodes']} episodes"
            )
        print(f"next: {typed('render', arguments.folder)}")
