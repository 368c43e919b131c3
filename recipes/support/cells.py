"""The cells of a benchmark: the trainings of its table, or of a user's own configurations."""

import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import yaml
from support.run_folder import CONFIG_FILE, SUMMARY_FILE
from support.run_labels import flat_run, groups_of, tasks_of
from support.sources import changes

from qmix_trl import load_config
from qmix_trl.config.checks import is_own_code
from qmix_trl.config.schema import MAX_SEED
from qmix_trl.errors import ConfigError, shown

RECIPES = Path(__file__).parents[1]
CONFIGS = RECIPES / "configs"
TASKS = (
    "balance",
    "navigation",
    "simple_spread",
    "dispersion",
    "wheel",
    "give_way",
    "transport",
    "memory",
    "mpe_spread",
    "foraging_8x8_2p_2f_coop",
    "foraging_2s_8x8_2p_2f_coop",
    "foraging_10x10_3p_3f",
)
BENCHMARL = "benchmarl_qmix"
COMPARED = ("qmix", "vdn", "iql")  # the default
_BASE = "{name: qmix, mixing_embed_dim: 32, hypernet_layers: 2, hypernet_embed_dim: 64}"
VARIANTS = {  # what each changes in QMIX's configuration of a task; it has none of its own
    "qfix": f"mixer={{name: qfix, base: {_BASE}, embed_dim: 64}}",
    "qplex": f"mixer={{name: qplex, base: {_BASE}, n_heads: 10}}",
    "cw_qmix": "loss.weighting={name: central, alpha: 0.75, embed_dim: 64}",
    "ow_qmix": "loss.weighting={name: optimistic, alpha: 0.5, embed_dim: 64}",
}
ALGORITHMS = (
    *COMPARED,
    *VARIANTS,
    "pqn",
    *(f"{algorithm}_recurrent" for algorithm in COMPARED),
    "qmix_feedforward",
    BENCHMARL,
)
MAX_STEM = 60  # characters of a run's name before the seed
SEEDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        stem: the name of its run before the seed.
        config: the file of its configuration.
        seed: of the run.
        overrides: ``key.sub=value`` of the cell.
        task, group: under which it is compared; runs of a group differ in the seed.
        recipe: the command that trains it.
    """

    stem: str
    config: Path
    seed: int
    overrides: tuple[str, ...]
    task: str
    group: str
    recipe: str = "train.py"

    @property
    def name(self) -> str:
        """The name of its run."""
        return f"{self.stem}-{self.seed}"

    @property
    def settings(self) -> tuple[str, ...]:
        """All overrides, seed and name included."""
        return (*self.overrides, f"seed={self.seed}", f"name={self.name}")

    def command(self, runs: Path) -> list[str]:
        """Return the command that trains the cell from its start, without checkpoints."""
        return self._command(runs, "checkpoint.every_seconds=null")

    def resuming(self, runs: Path) -> list[str]:
        """Return the command that trains the cell, or goes on with it from its checkpoint."""
        resume = ("--resume", "auto") if self.recipe == "train.py" else ()
        return self._command(runs, *resume)

    def _command(self, runs: Path, *options: str) -> list[str]:
        recipe = str(RECIPES / self.recipe)
        return [
            *(sys.executable, recipe, str(self.config), *options, *self.settings),
            *("--runs", str(runs)),
        ]

    def is_done(self, runs: Path) -> bool:
        """Return whether its run has finished; a damaged summary does not count.

        Raises:
            ConfigError: if its folder has another configuration, or this one has a mistake.
        """
        config, folder = load_config(self.config, self.settings), runs / self.name
        if not (folder / CONFIG_FILE).exists():
            return False
        done = load_config(folder / CONFIG_FILE)
        runtime = replace(done.runtime, threads=config.runtime.threads)
        if replace(done, runtime=runtime, checkpoint=config.checkpoint) != config:
            raise ConfigError(
                f"{folder} is a run of another configuration than {self.config} is now; "
                "delete it, or choose another folder by --runs"
            )
        for change in changes(folder):
            raise ConfigError(f"{folder}: {change}; delete it, or choose another folder by --runs")
        try:
            return isinstance(json.loads((folder / SUMMARY_FILE).read_text()), dict)
        except (OSError, ValueError):
            return False


def seeds_of(text: str) -> range:
    """Return the seeds that a number N (0 to N - 1) or a range A-B (A to B) names.

    Raises:
        ConfigError: if the text is neither, or names no seed.
    """
    match = SEEDS.fullmatch(text)
    if match:
        first, last = (0, int(match[1]) - 1) if match[2] is None else map(int, match.groups())
        if first <= last <= MAX_SEED:
            return range(first, last + 1)
    raise ConfigError(
        f"--seeds: expected a number of at least 1, or a range such as 0-9, got {shown(text)!r}"
    )


def alternatives(setting: str) -> list[str]:
    """Return the overrides of ``key=value,value``: one for each value.

    A comma within braces, brackets or quotes does not separate values.

    Raises:
        ConfigError: if the setting is not of that form.
    """
    key, equals, text = setting.partition("=")
    try:
        listed = yaml.compose(f"[{text}]", Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        listed = None
    if not (key and equals) or not isinstance(listed, yaml.SequenceNode) or not listed.value:
        raise ConfigError(f"--set: expected key.sub=value,value.., got {shown(setting)!r}")
    places = [(node.start_mark.index - 1, node.end_mark.index - 1) for node in listed.value]
    return [f"{key}={text[start:end].strip()}" for start, end in places]


def table_cells(
    tasks: Iterable[str],
    algorithms: Iterable[str],
    seeds: Iterable[int],
    choices: Sequence[Sequence[str]],
) -> list[Cell]:
    """Return the cells of tasks and algorithms that have a configuration, seed by seed.

    Args:
        tasks: some of ``TASKS``, or paths of files of the user's without their ``_ALGORITHM.yaml``.
        algorithms: some of ``ALGORITHMS``.
        seeds: of each.
        choices: overrides; a cell takes one of each.

    Raises:
        ConfigError: if no cell has a configuration, or a setting has a mistake.
    """
    cells = []
    for seed in seeds:
        for task, algorithm in product(tasks, algorithms):
            config = _config_of(task, algorithm)
            if config is None:
                continue
            for overrides in product(*choices):
                name = Path(task).name
                varied = _varied(overrides, choices)
                recipe = "train_benchmarl.py" if algorithm == BENCHMARL else "train.py"
                stem = _stem(f"{name}_{algorithm}", varied)
                group = ", ".join((algorithm, *varied))
                variant = [VARIANTS[algorithm]] if algorithm in VARIANTS else []
                cells.append(Cell(stem, config, seed, (*variant, *overrides), name, group, recipe))
    if not cells:
        raise ConfigError(f"no configuration of these tasks and algorithms is in {CONFIGS}")
    return _with_own_names(cells)


def own_cells(
    configs: Iterable[str], seeds: Iterable[int], choices: Sequence[Sequence[str]]
) -> list[Cell]:
    """Return the cells of a user's configurations, seed by seed.

    Args:
        configs: their files.
        seeds: of each.
        choices: overrides; a cell takes one of each.

    Raises:
        ConfigError: if a file or a setting has a mistake, or two cells have one name.
    """
    variants = list(product(dict.fromkeys(configs), product(*choices)))
    keys = [
        flat_run(asdict(load_config(config, overrides)), "qmix_trl")
        for config, overrides in variants
    ]
    tasks = tasks_of(keys)
    labels = list(zip(variants, tasks, groups_of(keys, tasks), strict=True))
    return _with_own_names(
        [
            Cell(
                _stem(Path(config).stem, _varied(overrides, choices)),
                Path(config),
                seed,
                overrides,
                task,
                group,
            )
            for seed in seeds
            for (config, overrides), task, group in labels
        ]
    )


def _config_of(task: str, algorithm: str) -> Path | None:
    """Return the file of a task and an algorithm, if there is one.

    BenchMARL and the variants share that of QMIX; BenchMARL has the tasks of VMAS alone.
    """
    is_benchmarl = algorithm == BENCHMARL
    folder = Path() if os.sep in task else CONFIGS
    shares = is_benchmarl or algorithm in VARIANTS
    config = folder / f"{task}_{'qmix' if shares else algorithm}.yaml"
    if not config.exists():
        return None
    env = load_config(config).env
    is_vmas = env.family == "vmas" and not is_own_code(env.scenario)
    return config if is_vmas or not is_benchmarl else None


def _varied(overrides: Sequence[str], choices: Sequence[Sequence[str]]) -> list[str]:
    """Return the overrides in which cells differ, each by the last part of its key."""
    varied = []
    for override, choice in zip(overrides, choices, strict=True):
        if len(choice) > 1:
            key, _, value = override.partition("=")
            varied.append(f"{key.rpartition('.')[2]}={value}")
    return varied


def _stem(name: str, varied: Sequence[str]) -> str:
    """Return the name of a cell's run before the seed, with letters that a run's name can have."""
    whole = "_".join((name, *varied))
    clean = re.sub(r"[^A-Za-z0-9.]+", "_", whole).strip("_.")
    if len(clean) <= MAX_STEM:
        return clean
    return f"{clean[:MAX_STEM]}_{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def _with_own_names(cells: list[Cell]) -> list[Cell]:
    """Return the cells.

    Raises:
        ConfigError: if two of them have one name, and so one folder.
    """
    found: dict[str, Cell] = {}
    for cell in cells:
        other = found.setdefault(cell.name, cell)
        if other != cell:
            what = [" ".join((str(c.config), *c.overrides)) for c in (other, cell)]
            raise ConfigError(
                f"{' and '.join(what)}: both runs would be called {cell.name}; rename a file"
            )
    return list(found.values())
