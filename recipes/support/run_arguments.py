"""The command lines of the recipes that read the folders of runs: evaluate, export, plot, render.

As in ``command_line.py``, mistakes are told before torch is imported.
"""

import argparse
import os
import signal
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from support.command_line import path, picture
from support.ends import end_at_once_on
from support.planned_run import check_drawing
from support.run_folder import VIDEOS, config_of_run
from support.terminal import Paragraphs

from qmix_trl.config.load import load_config
from qmix_trl.config.run_files import EXPORTS, WEIGHTS
from qmix_trl.config.schema import RunConfig
from qmix_trl.errors import ConfigError, check_extra, exit_on_mistake

EVALUATED = ("env", "evaluation")  # sections that an evaluation may change
POLICIES = ("greedy", "random", "no_op")
FILMS = (".gif", ".mp4", ".png")


def evaluation_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``evaluate.py``.

    They are ``folders``, ``overrides``, ``episodes``, ``seed``, ``device``, ``weights``, ``json``.

    Raises:
        SystemExit: if the command line or a run's configuration has a mistake.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    parser.add_argument(
        "folders", nargs="*", metavar="RUN", help="runs' folders, such as runs/balance_quick-1"
    )
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key.sub=value",
        help="of env, evaluation and runtime.threads; env.n_envs steps so many environments at a "
        "time (default: all episodes)",
    )
    parser.add_argument(
        "--episodes", type=int, help="evaluation.episodes (default: the first run's)"
    )
    parser.add_argument("--seed", type=int, help="evaluation.seed (default: the first run's)")
    _add_device(parser)
    _add_weights(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    arguments = parser.parse_intermixed_args()
    named = arguments.folders + arguments.overrides
    arguments.overrides = [text for text in named if "=" in text and not os.path.isdir(text)]
    arguments.folders = [Path(text) for text in named if text not in arguments.overrides]
    if not arguments.folders:
        parser.error("expected a run's folder, such as runs/balance_quick-1")
    for key in ("episodes", "seed"):
        if (value := vars(arguments).pop(key)) is not None:
            arguments.overrides.append(f"evaluation.{key}={value}")
    with exit_on_mistake():
        configs = evaluation_configs(arguments.folders, arguments.overrides)
        n_envs_together(arguments.overrides, configs)
    return arguments


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto: CUDA where there is one",
    )


def _add_weights(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default="last",
        help="those of the last evaluation, or of the highest greedy return (default: last)",
    )


def evaluation_configs(folders: Sequence[Path], overrides: Sequence[str]) -> list[RunConfig]:
    """Return the configurations of runs with overrides, all with the test episodes of the first.

    Args:
        folders: of the runs.
        overrides: ``key.sub=value`` of ``env``, ``evaluation`` or ``runtime.threads``.

    Raises:
        ConfigError: if a folder is no run's, or an override is a mistake or of another section.
    """
    for key in (override.partition("=")[0] for override in overrides):
        if key.partition(".")[0] not in EVALUATED and key != "runtime.threads":
            raise ConfigError(
                f"{key}: expected a key of {' or '.join(EVALUATED)}, or runtime.threads: all else "
                "of a trained run stays as it is"
            )
    configs: list[RunConfig] = []
    for folder in folders:
        config = load_config(config_of_run(folder), overrides)
        first = configs[0].evaluation if configs else config.evaluation
        same = {"episodes": first.episodes, "seed": first.seed}
        configs.append(replace(config, evaluation=replace(config.evaluation, **same)))
    return configs


def n_envs_together(overrides: Sequence[str], configs: Iterable[RunConfig]) -> int | None:
    """Return the number of environments that an evaluation steps together; None for all episodes.

    Args:
        overrides: of the command; ``env.n_envs`` counts where it stands among them.
        configs: of the runs, with the overrides.

    Raises:
        ConfigError: if it does not divide the number of episodes.
    """
    n_envs = None
    is_set = any(override.startswith("env.n_envs=") for override in overrides)
    for config in configs if is_set else ():
        n_envs, episodes = config.env.n_envs, config.evaluation.episodes
        if episodes % n_envs:
            raise ConfigError(
                f"env.n_envs ({n_envs}) does not divide evaluation.episodes ({episodes}): an "
                "evaluation steps as many environments at a time"
            )
    return n_envs


def export_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``export.py``: ``folder``, ``format``, ``out`` and ``weights``.

    Raises:
        SystemExit: if the command line or the run's configuration has a mistake, or the packages
            of the format are not installed.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    parser.add_argument(
        "folder", type=Path, metavar="RUN", help="a run's folder, such as runs/balance_quick-1"
    )
    parser.add_argument("--format", choices=EXPORTS, help="(default: the ending of --out, or pt2)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: policy.FORMAT in the run's folder)"
    )
    _add_weights(parser)
    arguments = parser.parse_args()
    with exit_on_mistake():
        arguments.format, arguments.out = _exported_file(
            arguments.folder, arguments.format, arguments.out
        )
    return arguments


def _exported_file(folder: Path, format: str | None, out: Path | None) -> tuple[str, Path]:
    """Return the format and the path of an exported policy.

    Raises:
        ConfigError: if the folder is no run's, they contradict each other, the file has no folder,
            or a package of the format is not installed.
    """
    load_config(config_of_run(folder))
    ending = "" if out is None else out.suffix[1:]
    format = format or (ending if ending in EXPORTS else "pt2")
    out = folder / f"policy.{format}" if out is None else out
    if out.suffix != f".{format}":
        raise ConfigError(f"--out: expected a file that ends in .{format}, got {out}")
    if not os.path.isdir(out.parent) or os.path.isdir(out):
        raise ConfigError(f"--out: expected a file in a folder that exists, got {out}")
    for package in EXPORTS[format]:
        check_extra(package, "export", f"--format {format}")
    return format, out


def plot_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``plot.py``: ``folders``, ``keys``, ``x``, ``y`` and ``out``.

    Raises:
        SystemExit: if the command line has a mistake.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="such as runs/mine-1")
    parser.add_argument(
        "--group-by",
        dest="keys",
        type=lambda text: text.split(","),
        metavar="KEY,..",
        help="keys of the configuration (default: those that differ; name: each run alone)",
    )
    parser.add_argument("--x", choices=("frames", "seconds"), default="frames")
    parser.add_argument(
        "--y", default="greedy_return", metavar="COLUMN", help="of metrics.csv (greedy_return)"
    )
    parser.add_argument("--out", type=picture, default="curves.png", help="a .png or .svg file")
    return parser.parse_intermixed_args()


def render_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``render.py``, which are named as the parameters of ``render``.

    Raises:
        SystemExit: if the command line or a run's configuration has a mistake, or a package is not
            installed.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    parser.add_argument(
        "folders",
        type=Path,
        nargs="+",
        metavar="RUN",
        help="a run's folder, such as runs/balance_quick-1; several are drawn side by side",
    )
    parser.add_argument(
        "--episodes", type=int, default=2, help="of the run's test episodes, the first (default: 2)"
    )
    parser.add_argument(
        "--policy", choices=POLICIES, default=POLICIES[0], help="(default: %(default)s)"
    )
    _add_weights(parser)
    parser.add_argument(
        "--out",
        type=path,
        metavar="FILE",
        help=f"one of {', '.join(FILMS)}; .png: a row of five moments for each episode (default: "
        "RUN/videos/POLICY.gif)",
    )
    parser.add_argument(
        "--renderer",
        choices=("agg", "vmas"),
        default="agg",
        help="agg needs no display; vmas is VMAS's own, which needs OpenGL (default: agg)",
    )
    arguments = parser.parse_args()
    with exit_on_mistake():
        title = film_title(arguments.policy, arguments.weights)
        arguments.out = film_path(arguments.out, arguments.folders, title)
        check_drawn(arguments.folders, arguments.episodes, arguments.renderer)
    return arguments


def film_title(policy: str, weights: str) -> str:
    """Return the name of the policy of a film, such as "greedy" or "greedy-best".

    Args:
        policy: one of ``POLICIES``.
        weights: one of ``WEIGHTS``; only the greedy policy has any.
    """
    return f"{policy}-{weights}" if policy == "greedy" and weights != "last" else policy


def film_path(out: str | None, folders: Sequence[Path], title: str) -> Path:
    """Return the path of a film.

    Args:
        out: as given; None for a file in the first run's folder.
        folders: of the runs.
        title: of the film.

    Raises:
        ConfigError: if it is no file of ``FILMS`` in a folder, or a package for it is missing.
    """
    if out is None:
        others = "".join(f"-{folder.name}" for folder in folders[1:])
        return folders[0] / VIDEOS / f"{title}{others}.gif"
    file = Path(out)
    if file.suffix.lower() not in FILMS:
        raise ConfigError(f"--out: expected a name that ends in {', '.join(FILMS)}, got {out}")
    if not file.parent.is_dir() or file.is_dir():
        raise ConfigError(f"--out: expected a file in a folder that exists, got {out}")
    if file.suffix.lower() == ".mp4":
        check_extra("imageio_ffmpeg", "video", "--out")
    return file


def check_drawn(folders: Sequence[Path], episodes: int, renderer: str) -> None:
    """Refuse runs that cannot be drawn.

    Args:
        folders: of the runs.
        episodes: the number of episodes to draw.
        renderer: "agg" or "vmas".

    Raises:
        ConfigError: if a folder has no configuration, it has fewer test episodes or is of another
            family than VMAS's where its renderer is asked for, or a package is missing.
    """
    check_drawing("render.py")
    for folder in folders:
        config = load_config(config_of_run(folder))
        if not 1 <= episodes <= config.evaluation.episodes:
            raise ConfigError(
                f"--episodes: expected 1 to {config.evaluation.episodes}, the test episodes of "
                f"{folder}, got {episodes}"
            )
        if renderer == "vmas" and config.env.family != "vmas":
            raise ConfigError(
                f"--renderer vmas: expected runs on scenarios of VMAS, got {folder}, which is one "
                f"of {config.env.family}; leave --renderer out"
            )
