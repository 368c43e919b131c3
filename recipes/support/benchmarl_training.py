"""BenchMARL's part of ``train_benchmarl.py``, which runs it in BenchMARL's own virtual environment.

It imports nothing of ours. Its argument is a JSON object of settings. Each line that it prints is a
JSON object about the weights just saved; it then waits for a line on its standard input.
"""

import json
import sys
import time
from pathlib import Path

import torch
from benchmarl.algorithms import QmixConfig
from benchmarl.environments import VmasTask
from benchmarl.experiment import Callback, Experiment, ExperimentConfig
from benchmarl.models.mlp import MlpConfig


class SaveAgents(Callback):
    """Saves the agents' layers at regular intervals, and prints where.

    Args:
        folder: to save in.
        every_frames: the interval in frames.
        last_frame: the number of frames at which training ends.
    """

    def __init__(self, folder: Path, every_frames: int, last_frame: int) -> None:
        super().__init__()
        self.folder = folder
        self.every_frames = every_frames
        self.last_frame = last_frame
        self.next = every_frames
        self.start = 0.0

    def on_setup(self) -> None:
        """Start the clock."""
        self.start = time.perf_counter()

    def on_train_end(self, training_td, group: str) -> None:
        """Save [weight, bias, weight, ..] after the updates of a batch."""
        frames = self.experiment.total_frames
        if frames < self.next and frames < self.last_frame:
            return
        self.next = (frames // self.every_frames + 1) * self.every_frames
        model = self.experiment.algorithm.get_policy_for_loss(group)[0]
        parameters = model.mlp.params.flatten_keys(".").to_dict()
        layers = sorted({int(name.split(".")[0]) for name in parameters})
        path = self.folder / f"benchmarl-{frames}.pt"
        torch.save(
            [parameters[f"{i}.{kind}"].detach() for i in layers for kind in ("weight", "bias")],
            path,
        )
        seconds = time.perf_counter() - self.start
        print(json.dumps({"frames": frames, "seconds": seconds, "path": str(path)}), flush=True)
        if not sys.stdin.readline():
            raise SystemExit("the process that evaluates the weights has ended")
        self.start = time.perf_counter() - seconds  # without the wait


def train(
    scenario: str,
    scenario_kwargs: dict,
    max_steps: int,
    n_envs: int,
    seed: int,
    total_frames: int,
    every_frames: int,
    folder: str,
) -> None:
    """Train QMIX with BenchMARL's defaults, except for the number of environments.

    Args:
        scenario: of VMAS.
        scenario_kwargs: its keywords.
        max_steps: the time limit in steps.
        n_envs: the number of environments.
        seed: of the run.
        total_frames: at which training ends, rounded up to whole batches.
        every_frames: the frames between two evaluations.
        folder: of the run.
    """
    torch.set_num_threads(1)
    config = ExperimentConfig.get_from_yaml()
    config.off_policy_n_envs_per_worker = n_envs
    config.max_n_frames = total_frames
    config.evaluation = False
    config.render = False
    config.loggers = []
    config.create_json = False
    config.save_folder = folder
    batch = config.off_policy_collected_frames_per_batch
    task = VmasTask[scenario.upper()].get_task(config={**scenario_kwargs, "max_steps": max_steps})
    Experiment(
        task=task,
        algorithm_config=QmixConfig.get_from_yaml(),
        model_config=MlpConfig.get_from_yaml(),
        critic_model_config=MlpConfig.get_from_yaml(),
        seed=seed,
        config=config,
        callbacks=[SaveAgents(Path(folder), every_frames, -(-total_frames // batch) * batch)],
    ).run()


if __name__ == "__main__":
    train(**json.loads(sys.argv[1]))
