"""The copies of a user's files in a run's folder: written, compared, and used.

They are the files of the run's scenario, environment and mixer that are the user's own, with all
files that these import, and the configuration and weights of a run by which others act.
``source/files.json`` lists where they are from, and their hashes. Torch is imported only to find
them.
"""

import hashlib
import json
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from support.run_folder import CONFIG_FILE

from qmix_trl.config.checks import is_own_code
from qmix_trl.config.run_files import SOURCES, SOURCES_FILE
from qmix_trl.config.schema import (
    OTHERS,
    CustomConfig,
    CustomMixerConfig,
    PettingZooConfig,
    RunConfig,
    VmasConfig,
)
from qmix_trl.errors import ConfigError, SaveError
from qmix_trl.logs import say, write_json

SCENARIO = "env.scenario"  # as a key
# The folders of copies, by the keys that name code; files of both may have the same names.
CODE_FOLDERS = {SCENARIO: "", "env.make": "", "mixer.make": "mixer"}
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
    if (folder / SOURCES / SOURCES_FILE).exists():
        return
    names, files = copies_of(config)
    if not files:
        return
    listed = []
    try:
        for file, place in sorted(files):
            copy = folder / SOURCES / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
            listed.append({"file": str(place), "from": str(file), "sha256": _hash(copy)})
    except OSError as error:
        raise SaveError(f"{folder / SOURCES}: cannot be written: {error.strerror}") from None
    write_json(folder / SOURCES / SOURCES_FILE, {"names": names, "files": listed})


def copies_of(config: RunConfig) -> tuple[dict[str, str], list[tuple[Path, Path]]]:
    """Return the names of the user's code within copies, by their keys; and files with places.

    Args:
        config: of a run.
    """
    env = config.env
    names: dict[str, str] = {}
    files: list[tuple[Path, Path]] = []
    for key, name in own_names(config).items():
        is_scenario = key == SCENARIO and isinstance(env, VmasConfig)
        names[key], places = own_files(name, is_scenario=is_scenario)
        files += [(file, Path(CODE_FOLDERS[key], place)) for file, place in places.items()]
    if isinstance(env, VmasConfig) and env.others not in OTHERS:
        files += [(Path(env.others, name), Path(BY_RUN, name)) for name in OF_RUN]
    return names, files


def own_names(config: RunConfig) -> dict[str, str]:
    """Return the names in a configuration that may be of the user's code, by their keys."""
    env, mixer, names = config.env, config.mixer, {}
    if isinstance(env, (VmasConfig, PettingZooConfig)):
        names[SCENARIO] = env.scenario
    elif isinstance(env, CustomConfig):
        names["env.make"] = env.make
    if isinstance(mixer, CustomMixerConfig):
        names["mixer.make"] = mixer.make
    return {key: name for key, name in names.items() if is_own_code(name)}


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
    if folder is None or not changed:
        return config
    listed = _listed(folder)
    for entry in listed["files"]:
        copy = folder / SOURCES / entry["file"]
        if not copy.is_file() or _hash(copy) != entry["sha256"]:
            raise ConfigError(f"{folder}: {changed[0]}, and the copy {copy} is damaged or gone")
    say(f"source: {'; '.join(map(str, changed))}; the copy in {folder / SOURCES} is used")
    copies = (folder / SOURCES).resolve()
    _forget({entry["from"] for entry in listed["files"]})
    for key, name in listed["names"].items():
        place = copies / CODE_FOLDERS[key]
        sys.path.insert(0, str(place))
        is_file = name.partition(":")[0].endswith(".py")
        config = _with(config, key, f"{place / name}" if is_file else name)
    if isinstance(config.env, VmasConfig) and config.env.others not in OTHERS:
        config = _with(config, "env.others", str(copies / BY_RUN))
    return config


def _with(config: RunConfig, key: str, value: str) -> RunConfig:
    """Return a configuration with another value of ``section.field``."""
    section, field = key.split(".")
    return replace(config, **{section: replace(getattr(config, section), **{field: value})})


def own_files(name: str, *, is_scenario: bool) -> tuple[str, dict[Path, Path]]:
    """Return the name of the user's code within a copy of its files, and their places by file.

    Args:
        name: as in ``user_code.split_name``.
        is_scenario: it is one of VMAS's kind, as in ``vmas_scenarios.own_class``.
    """
    from qmix_trl.envs.compiled.task_sources import Sources
    from qmix_trl.envs.user_code import load_module, split_name
    from qmix_trl.envs.vmas_scenarios import VMAS_FOLDER, own_class

    where, thing = split_name(name)
    if is_scenario:
        cls = own_class(name)
        thing, sources = cls.__name__, Sources(frozenset({cls.__module__.split(".")[0]}))
        sources.add_objects(cls.__mro__)
    else:
        sources = Sources(frozenset())  # an installed package is not copied
        sources.add_objects([load_module(where)])
    base = None
    if where.endswith(".py"):
        base = Path(where).resolve().parent
        sources.add_file(Path(where).resolve())  # also where it lies among installed packages
    places = {file: _place(file, base) for file in sources.files if VMAS_FOLDER not in file.parents}
    if base is not None:
        where = str(places[Path(where).resolve()])
    return f"{where}:{thing}" if thing else where, places


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
        if "scenario" in listed:  # of runs from before other code was copied
            is_own = is_own_code(listed["scenario"])
            listed["names"] = {SCENARIO: listed["scenario"]} if is_own else {}
        _ = [CODE_FOLDERS[key] for key in listed["names"]]
        return listed
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: expected the list of a run's sources, got {error}") from None


def _hash(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
