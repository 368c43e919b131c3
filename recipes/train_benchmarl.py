"""Train BenchMARL's QMIX on the task of a configuration, and evaluate it by our code.

python recipes/train_benchmarl.py recipes/configs/balance_qmix.yaml [seed=0 ..]

Of the configuration count the scenario with its keywords, n_envs, max_steps,
collection.total_frames, evaluation, seed and name; all else is as BenchMARL has it by default. It
wants a TorchRL of its own and gets a virtual environment, made at the first call, which shares
torch and VMAS with ours. Its clock begins when its experiment is set up and stands still while we
evaluate. The run's folder has config.yaml, metrics.csv and summary.json, so that benchmark.py
shows it beside ours.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from support.components import (
    CONFIG_FILE,
    build_env,
    choose_device,
    run_stem,
    set_threads,
    stream_seed,
    summarize,
)
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn

from qmix_trl import (
    GreedyAction,
    NoOpPolicy,
    RandomPolicy,
    env_dims,
    episode_returns,
    load_config,
    save_config,
)
from qmix_trl.config import RunConfig
from qmix_trl.errors import ConfigError, MachineError, exit_on_mistake
from qmix_trl.keys import ACTION_VALUE, OBSERVATION
from qmix_trl.logs import Column, RunLog, make_run_folder, write_json
from qmix_trl.native import store

PACKAGES = (  # without what they depend on: the rest is ours
    "benchmarl==1.5.2",
    "torchrl==0.11.1",
    "tensordict==0.11.0",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
    "tqdm>=4.66,<5",
)
COLUMNS = (
    Column("frames", "frames", ",d"),
    Column("frames_per_second", "frames/s", ",.0f"),
    Column("greedy_return", "greedy", ".2f"),
)


def make_environment() -> Path:
    """Return the Python of BenchMARL's virtual environment, made if it is not there.

    Raises:
        MachineError: if a package cannot be installed.
    """
    ours = sysconfig.get_path("purelib")
    key = hashlib.sha256(repr((PACKAGES, ours, sys.version)).encode()).hexdigest()[:12]
    root = store.folder() / f"benchmarl-{key}"
    python = root / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    ready = root / "ready"
    if ready.exists():
        return python
    print(f"making BenchMARL's virtual environment, {root}", flush=True)
    venv.create(root, clear=True, with_pip=True)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install")
    install = [*pip, "--quiet", "--no-deps", *PACKAGES]
    done = subprocess.run(install, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["nothing said"])[-1]
        raise MachineError(f"pip cannot install BenchMARL: {said}")
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    theirs = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    # Behind their own packages, so that these come first.
    (Path(theirs) / "ours.pth").write_text(f"{ours}\n")
    ready.touch()
    return python


def trained(python: Path, config: RunConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Train, and yield {frames, seconds, path} of the weights at each evaluation; wait for it.

    Raises:
        MachineError: if BenchMARL's process fails.
    """
    settings = {
        "scenario": config.env.scenario,
        "scenario_kwargs": config.env.scenario_kwargs,
        "max_steps": config.env.max_steps,
        "n_envs": config.env.n_envs,
        "seed": config.seed,
        "total_frames": config.collection.total_frames,
        "every_frames": config.evaluation.every_frames,
        "folder": str(folder.resolve()),
    }
    script = Path(__file__).with_name("support") / "benchmarl_training.py"
    command = [str(python), "-I", str(script), json.dumps(settings)]  # -I: without our recipes
    with (
        (folder / "benchmarl.log").open("w+") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        for line in process.stdout or ():
            if line.startswith("{"):
                yield json.loads(line)
                print(file=process.stdin, flush=True)
        if process.wait():
            log.seek(0)
            last = (log.read().strip().splitlines() or ["nothing said"])[-1]
            raise MachineError(f"BenchMARL ended with {process.returncode}: {last}")


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
    """Train as BenchMARL does, evaluate as train.py does; return the run's folder."""
    config = load_config(config_path, overrides)
    if config.env.family != "vmas":
        raise ConfigError(f"env.family: BenchMARL has VMAS's tasks, not {config.env.family!r}")
    python = make_environment()
    set_threads(config.runtime.threads)
    device = choose_device("cpu")
    e = config.evaluation
    seed = stream_seed(e.seed, "test_env")
    env = build_env(config, device, n_envs=e.episodes, seed=seed, reset_when_done=False)
    n_actions = env_dims(env).n_actions

    def evaluate(policy: nn.Module) -> dict[str, float]:
        returns = episode_returns(env, policy, max_steps=config.env.max_steps, seed=seed)
        return summarize(returns)

    random = RandomPolicy(n_actions, seed=stream_seed(e.seed, "random_policy"))
    returns = {"no_op": evaluate(NoOpPolicy(n_actions)), "random": evaluate(random)}
    stem = f"benchmarl_{run_stem(Path(config_path))}"
    folder = make_run_folder(Path(runs), config.name, stem=stem)
    save_config(config, folder / CONFIG_FILE)
    caption = " ".join(f"{name} {value['mean']:.2f}" for name, value in returns.items())
    point = {}
    with RunLog(folder, COLUMNS, caption=caption) as log:
        for point in trained(python, config, folder):
            returns["greedy"] = evaluate(greedy_policy(point["path"]))
            speed = point["frames"] / point["seconds"]
            greedy = returns["greedy"]["mean"]
            row = {"frames": point["frames"], "frames_per_second": speed, "greedy_return": greedy}
            log.row(row)
    summary = {
        "frames": point["frames"],
        "seconds": point["seconds"],
        "seed": config.seed,
        "packages": PACKAGES,
        "return": returns,
    }
    write_json(folder / "summary.json", summary)
    return folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="a file such as recipes/configs/balance_qmix.yaml")
    parser.add_argument("overrides", nargs="*", help="key.sub=value", metavar="key.sub=value")
    parser.add_argument("--runs", default="runs", help="where run folders are made")
    arguments = parser.parse_intermixed_args()
    with exit_on_mistake():
        main(arguments.config, arguments.overrides, arguments.runs)
