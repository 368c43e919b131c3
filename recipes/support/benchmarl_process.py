"""BenchMARL's process: its virtual environment, its start, and the weights that it saves."""

import hashlib
import json
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qmix_trl.config.checks import is_own_code
from qmix_trl.config.load import load_config
from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import ConfigError, MachineError
from qmix_trl.native import store

PACKAGES = (  # installed without their dependencies: the rest is in our environment
    "benchmarl==1.5.2",
    "torchrl==0.11.1",
    "tensordict==0.11.0",
    "hydra-core==1.3.2",
    "omegaconf==2.3.0",
    "antlr4-python3-runtime==4.9.3",
    "tqdm>=4.66,<5",
)


def load_vmas_config(path: str, overrides: Sequence[str]) -> RunConfig:
    """Return the configuration of a run on a task of VMAS.

    Raises:
        ConfigError: if it has a mistake, or the task is none of VMAS's.
    """
    config = load_config(path, overrides)
    if config.env.family != "vmas":
        raise ConfigError(f"env.family: BenchMARL has VMAS's tasks, not {config.env.family!r}")
    if is_own_code(config.env.scenario):
        raise ConfigError(
            f"env.scenario: BenchMARL has VMAS's scenarios alone, not {config.env.scenario}"
        )
    return config


def make_virtualenv() -> Path:
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
    # A path file comes after their own packages, which so take precedence over ours.
    (Path(theirs) / "ours.pth").write_text(f"{ours}\n")
    ready.touch()
    return python


def trained(python: Path, config: RunConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Train, and yield {frames, seconds, path} of the weights at each evaluation.

    BenchMARL waits while the caller evaluates them.

    Args:
        python: of BenchMARL's virtual environment.
        config: of the run.
        folder: of the run; weights and BenchMARL's log are written to it.

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
    script = Path(__file__).with_name("benchmarl_training.py")
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
