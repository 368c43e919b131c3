"""BenchMARL's part of ``train_benchmarl.py``, which runs it in BenchMARL's own virtual environment.

It imports nothing of ours. A JSON object on the command line says what to train; each line that
it prints is a JSON object on the weights that it has just saved; when a line comes in, it goes on.
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
    """Saves the agents' layers, and says so, at every so many frames.

    Args:
        folder: where to.
        every_frames: how often.
        last_frame: at which training ends.
    """

    def __init__(self, folder: Path, every_frames: int, last_frame: int) -> None:
        super().__init__()
        self.folder = folder
        self.every_frames = every_frames
        self.last_frame = last_frame
        self.next = every_frames
        self.start = 0.0

    def on_setup(self) -> None:
        """Begin to count seconds."""
        self.start = time.perf_counter()

    def on_train_end(self, training_td, group: str) -> None:
        """Save [weight, bias, weight, ..] as the updates of a batch end."""
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
            raise SystemExit("nobody waits for the weights any more")
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
    """Train QMIX as BenchMARL does by default, but for the number of environments."""
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
