"""Train BenchMARL's QMIX on the task of a configuration, and evaluate it by our code.

python recipes/train_benchmarl.py recipes/configs/balance_qmix.yaml [seed=0 ..]

These settings of the configuration count: the scenario with its keywords, n_envs, max_steps,
collection.total_frames, evaluation, seed and name; all others are BenchMARL's defaults. BenchMARL
needs another version of TorchRL and gets a virtual environment, made at the first call, which
shares torch and VMAS with ours. Its clock starts when its experiment is set up and stands still
while we evaluate. The run's folder has config.yaml, metrics.csv and summary.json, so that
benchmark.py shows it next to ours.
"""

from collections.abc import Sequence
from pathlib import Path

from support.benchmarl_process import PACKAGES, load_vmas_config, make_virtualenv, trained
from support.command_line import benchmarl_arguments

if __name__ == "__main__":
    # Before torch is imported: mistakes are told at once.
    arguments = benchmarl_arguments(__doc__, load_vmas_config)

import torch
from support.components import choose_device
from support.evaluation import Evaluation
from support.run_folder import CONFIG_FILE, SUMMARY_FILE, run_stem
from support.threads import set_threads
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from qmix_trl import GreedyAction, save_config
from qmix_trl.errors import exit_on_mistake
from qmix_trl.keys import ACTION_VALUE, OBSERVATION
from qmix_trl.logs import Column, RunLog, make_run_folder, write_json

COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("frames_per_second", "frames/s", ",.0f"),
    Column("greedy_return", "greedy", ".2f"),
)


def greedy_policy(path: Path) -> TensorDictSequential:
    """Return the saved agents, perceptrons with hyperbolic tangents, with a greedy head."""
    tensors = torch.load(path, weights_only=True)
    layers: list[nn.Module] = []
    for weight, bias in zip(tensors[::2], tensors[1::2], strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        layers += [linear, nn.Tanh()]
    network = nn.Sequential(*layers[:-1])
    agent = TensorDictModule(network, in_keys=[OBSERVATION], out_keys=[ACTION_VALUE])
    return TensorDictSequential(agent, GreedyAction())


def main(config_path: str, overrides: Sequence[str], runs: str) -> Path:
    """Train as BenchMARL does, evaluate as train.py does; return the run's folder.

    Raises:
        ConfigError: if the configuration has a mistake, or its task is none of VMAS's.
        MachineError: if BenchMARL cannot be installed, or its process fails.
    """
    config = load_vmas_config(config_path, overrides)
    python = make_virtualenv()
    set_threads(config.runtime.threads)
    evaluation = Evaluation(config, choose_device("cpu"))
    returns = evaluation.baselines()
    stem = f"benchmarl_{run_stem(Path(config_path))}"
    folder = make_run_folder(Path(runs), config.name, stem=stem)
    save_config(config, folder / CONFIG_FILE)
    caption = " ".join(f"{name} {value['mean']:.2f}" for name, value in returns.items())
    point = {}
    with RunLog(folder, COLUMNS, caption=caption) as log:
        for point in trained(python, config, folder):
            returns["greedy"] = evaluation.returns(greedy_policy(point["path"]))
            speed = point["frames"] / point["seconds"]
            greedy = returns["greedy"]["mean"]
            log.write(
                {"frames": point["frames"], "frames_per_second": speed, "greedy_return": greedy}
            )
    summary = {
        "frames": point["frames"],
        "seconds": point["seconds"],
        "seed": config.seed,
        "packages": PACKAGES,
        "return": returns,
    }
    write_json(folder / SUMMARY_FILE, summary)
    return folder


if __name__ == "__main__":
    with exit_on_mistake():
        main(arguments.config, arguments.overrides, arguments.runs)
