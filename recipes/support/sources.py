"""The copies of a user's files in a run's folder: written, compared, and used.

They are the files that make the run's scenario, with all files that these import, and the
configuration and weights of a run by which others act. ``source/files.json`` lists where they are
from, and their hashes. Torch is imported only to find them.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.run_folder import CONFIG_FILE

from qmix_trl.config.checks import is_own_scenario
from qmix_trl.config.run_files import SOURCES, SOURCES_FILE
from qmix_trl.config.schema import OTHERS, RunConfig, VmasConfig
from qmix_trl.errors import ConfigError, SaveError
from qmix_trl.logs import say, write_json

BY_RUN = "others"  # the folder of the copies of a run by which others act
OF_RUN = (CONFIG_FILE, "weights.pt")
SHOWN_DIGITS = 12  # of a hash


@dataclass(frozen=True)
class Change:
    """A file that is another one than the run's.

    Attributes:
        file: where the run has it from.
        copy: in the run's folder.
        before: its hash when the run began.
        now: its hash; None if the file is gone.
    """

    file: Path
    copy: Path
    before: str
    now: str | None

    def __str__(self) -> str:
        now = "is gone" if self.now is None else f"has the hash {self.now[:SHOWN_DIGITS]}"
        return f"{self.file} {now}, the run began with {self.before[:SHOWN_DIGITS]}"


def save_sources(config: RunConfig, folder: Path) -> None:
    """Copy the files that a run depends on to its folder, once; most runs have none.

    Args:
        config: of the run.
        folder: of the run.

    Raises:
        SaveError: if they cannot be written.
    """
    env = config.env
    if not isinstance(env, VmasConfig) or (folder / SOURCES / SOURCES_FILE).exists():
        return
    spec, files = env.scenario, {}
    if is_own_scenario(spec):
        spec, files = scenario_files(spec)
    if env.others not in OTHERS:
        files |= {Path(env.others, name): Path(BY_RUN, name) for name in OF_RUN}
    if not files:
        return
    listed = []
    try:
        for file, place in sorted(files.items()):
            copy = folder / SOURCES / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            listed.append({"file": str(place), "from": str(file), "sha256": _hash(copy)})
    except OSError as error:
        raise SaveError(f"{folder / SOURCES}: cannot be written: {error.strerror}") from None
    write_json(folder / SOURCES / SOURCES_FILE, {"scenario": spec, "files": listed})


def changes(folder: Path) -> list[Change]:
    """Return the files that a run depends on and that are others now."""
    found = []
    for entry in _listed(folder).get("files", []):
        file = Path(entry["from"])
        now = _hash(file) if file.is_file() else None
        if now != entry["sha256"]:
            copy = folder / SOURCES / entry["file"]
            found.append(Change(file, copy, entry["sha256"], now))
    return found


def check_sources(folder: Path) -> None:
    """Refuse to go on with a run that depends on a file that has changed; one may be gone.

    Raises:
        ConfigError: if a file has changed; it names the file with both hashes.
    """
    for change in changes(folder):
        if change.now is not None:
            raise ConfigError(
                f"{folder}: {change}: a run goes on with the file with which it began; restore "
                f"it from {change.copy}, or train a new run"
            )


def with_sources(config: RunConfig, folder: Path | None) -> RunConfig:
    """Return a configuration that names the run's copies, if a file is another one now.

    Args:
        config: of the run.
        folder: of the run; None for a run that begins.

    Raises:
        ConfigError: if a copy is needed that is damaged or gone.
    """
    changed = changes(folder) if folder is not None else []
    env = config.env
    if folder is None or not changed or not isinstance(env, VmasConfig):
        return config
    for entry in _listed(folder)["files"]:
        copy = folder / SOURCES / entry["file"]
        if not copy.is_file() or _hash(copy) != entry["sha256"]:
            raise ConfigError(f"{folder}: {changed[0]}, and the copy {copy} is damaged or gone")
    say(f"source: {'; '.join(map(str, changed))}; the copy in {folder / SOURCES} is used")
    copies = (folder / SOURCES).resolve()
    scenario, others = env.scenario, env.others
    if is_own_scenario(scenario):
        _forget({entry["from"] for entry in _listed(folder)["files"]})
        sys.path.insert(0, str(copies))
        scenario = _listed(folder)["scenario"]
        if scenario.rpartition(":")[0].endswith(".py"):
            scenario = f"{copies}/{scenario}"
    if others not in OTHERS:
        others = str(copies / BY_RUN)
    return replace(config, env=replace(env, scenario=scenario, others=others))


def scenario_files(spec: str) -> tuple[str, dict[Path, Path]]:
    """Return a scenario's name within a copy of its files, and their places there by file.

    Args:
        spec: as in ``vmas_scenarios.own_class``.
    """
    from qmix_trl.envs.compiled.task_sources import Sources
    from qmix_trl.envs.user_code import split_name
    from qmix_trl.envs.vmas_scenarios import VMAS_FOLDER, own_class

    cls, where = own_class(spec), split_name(spec)[0]
    sources = Sources(frozenset({cls.__module__.split(".")[0]}))
    sources.add_objects(cls.__mro__)
    base = Path(where).resolve().parent if where.endswith(".py") else None
    places = {file: _place(file, base) for file in sources.files if VMAS_FOLDER not in file.parents}
    if base is not None:
        where = str(places[Path(where).resolve()])
    return f"{where}:{cls.__name__}", places


def _place(file: Path, base: Path | None) -> Path:
    """Return the place of a file in a copy, at which it is imported by the same name.

    Args:
        file: of a module.
        base: the folder of the scenario's file; None for a scenario of a module.
    """
    from qmix_trl.envs.user_code import PREFIX

    for name, module in sys.modules.items():
        known = getattr(module, "__file__", None)
        if known is not None and Path(known) == file and not name.startswith((PREFIX, "__")):
            place = Path(*name.split("."))
            return place / file.name if file.name == "__init__.py" else place.with_suffix(".py")
    for root in (base, *map(Path, sys.path)):
        if root is not None and root in file.parents:
            return file.relative_to(root)
    return Path(file.name)


def _forget(files: set[str]) -> None:
    """Let modules of some files be imported again, from elsewhere."""
    for name, module in list(sys.modules.items()):
        if getattr(module, "__file__", None) in files:
            del sys.modules[name]


def _listed(folder: Path) -> dict[str, Any]:
    """Return the list of a run's files; empty if it has none.

    Raises:
        ConfigError: if it is damaged.
    """
    path = folder / SOURCES / SOURCES_FILE
    try:
        listed = json.loads(path.read_text())
        _ = [(entry["file"], entry["from"], entry["sha256"]) for entry in listed["files"]]
        _ = listed["scenario"]
        return listed
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: expected the list of a run's sources, got {error}") from None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
