"""The plan of ``throughput.py``: the device, the cases, and the lengths of their rounds."""

import argparse
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version

import torch
from support.throughput.report import TITLES

MAX_STEPS = 100  # of an episode
MOST_ENVS_OF_LONG_BATCHES = 2**16  # above, 100 steps of a batch do not fit an 80 GB card


@dataclass(frozen=True)
class Plan:
    """A measurement: options of the command line, and lengths that depend on the device.

    On a GPU ``VmasEnv`` resets environments one by one on the host, milliseconds each. There the
    baselines are timed from a common reset, in rounds that end before the first episode does.

    Attributes:
        device: of all environments, networks, batches and replay buffers.
        on_gpu: the lengths are a GPU's, and details are printed.
        what: the parts that are timed, keys of ``report.TITLES``.
        scenarios: of VMAS.
        envs: numbers of environments.
        engines: of ours.
        rounds: their number.
        steps: T of our batches; None: by the number of environments.
        baseline_steps: of a round of ``VmasEnv``, after a common reset if on a GPU.
        rollout_steps: of one call of each engine.
        round_updates: of our updates in a round.
        train_envs: the number of environments of whole training.
        compile: our loss runs under ``torch.compile``, in updates and in training.
    """

    device: torch.device
    on_gpu: bool
    what: Sequence[str]
    scenarios: Sequence[str]
    envs: Sequence[int]
    engines: Sequence[str]
    rounds: int
    steps: int | None
    baseline_steps: int
    rollout_steps: dict[str, int]
    round_updates: int
    train_envs: int
    compile: bool

    def batch_steps(self, n_envs: int) -> int:
        """Return T of our batches of so many environments."""
        if self.steps is not None:
            return self.steps
        return 100 if self.on_gpu and n_envs <= MOST_ENVS_OF_LONG_BATCHES else 25

    def baseline_batch_steps(self, n_envs: int) -> int:
        """Return T of the baseline's batches of so many environments."""
        return self.baseline_steps if self.on_gpu else self.batch_steps(n_envs)


CPU_PLAN = Plan(
    device=torch.device("cpu"),
    on_gpu=False,
    what=tuple(TITLES),
    scenarios=("balance", "navigation", "simple_spread", "dispersion", "transport", "discovery"),
    envs=(32, 600, 4096),
    engines=("kernel", "eager"),
    rounds=7,
    steps=None,
    baseline_steps=MAX_STEPS,  # so that a round has the resets of every environment
    rollout_steps={"kernel": 20, "inductor": 10, "eager": 10},  # these fit the CPU's cache
    round_updates=5,
    train_envs=128,
    compile=False,
)
GPU_PLAN = replace(  # about four minutes on an H100
    CPU_PLAN,
    on_gpu=True,
    what=tuple(what for what in TITLES if what != "train-4"),
    scenarios=("balance", "simple_spread"),
    envs=(4096, 32768, 131072),
    engines=("kernel",),
    rounds=3,
    baseline_steps=20,
    rollout_steps={"kernel": 100, "inductor": 10, "eager": 10},
    round_updates=50,
    train_envs=512,
)


def plan_of(arguments: argparse.Namespace, device: torch.device) -> Plan:
    """Return the plan for a device; an option that is None takes the device's default."""
    names = {field.name for field in fields(Plan)} - {"device"}
    given = {k: v for k, v in vars(arguments).items() if k in names and v is not None}
    return replace(GPU_PLAN if device.type == "cuda" else CPU_PLAN, device=device, **given)


@cache
def machine(device: torch.device) -> dict[str, str]:
    """Return the names of the device and of its driver, and the versions of torch and Triton."""
    on_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_cuda else str(device),
        "driver": _driver() if on_cuda else "",
        "torch": str(torch.__version__),
        "triton": _triton(),
    }


def _driver() -> str:
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(ask, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.split("\n", 1)[0].strip()


def _triton() -> str:
    try:
        return version("triton")
    except PackageNotFoundError:
        return ""
