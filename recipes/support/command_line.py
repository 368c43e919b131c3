"""The command lines of the recipes; ``run_arguments.py`` has those that read runs.

They are read before torch is imported, and so is the configuration that they name: a mistake is
told at once.
"""

import argparse
import errno
import io
import os
import re
import signal
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

from support.curve_report import check_packages
from support.ends import end_at_once_on
from support.game_settings import GAMES
from support.planned_run import NEWEST, check_name_is_free, planned_run
from support.shares import KEEP, READINGS
from support.shipped import config_file
from support.terminal import Paragraphs
from support.throughput.report import COLORS, TITLES

from qmix_trl.config.checks import check_vmas_scenario
from qmix_trl.config.schema import RunConfig
from qmix_trl.config.user_files import with_whole_path
from qmix_trl.errors import ConfigError, exit_on_mistake, nearest, shown
from qmix_trl.ranks import is_one_of_a_machine, world_size

CONFIG_HELP = "a file, or a name such as balance_quick; `qmix-trl copy` lists the names"
OVERRIDE_HELP = "sets a key of CONFIG, such as env.n_envs=60 or 'mixer={name: vdn}'"


class ConfigParser(argparse.ArgumentParser):
    """Reads the command line of a recipe whose configuration has overrides."""

    def error(self, message: str) -> NoReturn:
        """Exit with a mistake in the arguments; an unknown option may be meant as an override."""
        unknown = re.search(r"unrecognized arguments:.*?--([\w.-]+)", message)
        if unknown and unknown[1].partition(".")[0] in RunConfig.__dataclass_fields__:
            message += f"; a key of the configuration is set without --: {unknown[1]}=..."
        super().error(message)


def train_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``train.py``, under the names of the arguments of ``train``.

    From here on a signal ends the process at once, until the training takes care of it. Of several
    ranks on a machine one tells mistakes.

    Raises:
        SystemExit: if the command line or the configuration has a mistake.
    """
    end_at_once_on(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    keep_first_places()
    with _told_once(), exit_on_mistake():
        arguments = _train_command(description)
        if arguments.config is not None:
            arguments.config = config_file(arguments.config)
        planned_run(**vars(arguments), n_ranks=world_size())
    return arguments


def _told_once() -> AbstractContextManager[Any]:
    """Return a context that hides errors in all ranks of a machine but one: all make the same."""
    with exit_on_mistake():
        is_told = is_one_of_a_machine()
    return nullcontext() if is_told else redirect_stderr(io.StringIO())


def _train_command(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``train.py`` as they were typed.

    Raises:
        SystemExit: if the command line has a mistake.
    """
    parser = ConfigParser(description=description, formatter_class=Paragraphs)
    parser.add_argument("config", nargs="?", help=CONFIG_HELP)
    parser.add_argument("overrides", nargs="*", help=OVERRIDE_HELP, metavar="key.sub=value")
    parser.add_argument(
        "--runs", type=path, default="runs", help="the folder of all runs (default: runs)"
    )
    parser.add_argument(
        "--resume",
        type=path,
        metavar="RUN",
        help="go on with a run: its folder, without CONFIG; or auto: the newest run of CONFIG that "
        "has a checkpoint, or a new one",
    )
    parser.add_argument(
        "--frames-per-rank",
        choices=READINGS,
        default=KEEP,
        help="by torchrun: each rank has the environments and rows of CONFIG (keep, the default), "
        "or all ranks together have them (split)",
    )
    arguments = parser.parse_intermixed_args()
    if arguments.resume not in (None, NEWEST):
        if arguments.config is not None:
            arguments.overrides.insert(0, arguments.config)
            arguments.config = None
        for override in arguments.overrides:
            if "=" not in override:
                parser.error(
                    f"--resume {arguments.resume}: the run has its own CONFIG; leave out {override}"
                )
    elif arguments.config is None:
        parser.error("expected CONFIG, such as balance_quick")
    return arguments


def path(text: str) -> str:
    """Return a path of the command line, where a file may be or not.

    Raises:
        argparse.ArgumentTypeError: if its name is too long for any file.
    """
    try:
        os.lstat(text)
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise argparse.ArgumentTypeError(f"{shown(text)}: {error.strerror}") from error
    return text


def new_file(text: str) -> Path:
    """Return the path of a file that a command writes.

    Raises:
        argparse.ArgumentTypeError: if it is a folder, or its folder does not exist.
    """
    file = Path(path(text))
    if not file.parent.is_dir() or file.is_dir():
        raise argparse.ArgumentTypeError(f"expected a file in a folder that exists, got {text}")
    return file


def picture(text: str) -> Path:
    """Return the path of a picture that a command draws.

    Raises:
        argparse.ArgumentTypeError: if it has another ending, or there cannot be such a file.
    """
    file = new_file(text)
    if file.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"expected a name that ends in .png or .svg, got {text}")
    return file


def keep_first_places() -> None:
    """Open standard input, output and errors where the process has none.

    Otherwise a file of the run would take their place, and get what others print.
    """
    while (place := os.open(os.devnull, os.O_RDWR)) < 3:
        pass
    os.close(place)


def benchmarl_arguments(
    description: str | None, load: Callable[[str, Sequence[str]], RunConfig]
) -> argparse.Namespace:
    """Return the arguments of ``train_benchmarl.py``: ``config``, ``overrides`` and ``runs``.

    Args:
        description: the help text of the command.
        load: reads the configuration that the command can train.

    Raises:
        SystemExit: if the command line or the configuration has a mistake.
    """
    parser = ConfigParser(description=description, formatter_class=Paragraphs)
    parser.add_argument("config", help=CONFIG_HELP)
    parser.add_argument("overrides", nargs="*", help=OVERRIDE_HELP, metavar="key.sub=value")
    parser.add_argument(
        "--runs", type=path, default="runs", help="the folder of all runs (default: runs)"
    )
    arguments = parser.parse_intermixed_args()
    with exit_on_mistake():
        arguments.config = config_file(arguments.config)
        config = load(arguments.config, arguments.overrides)
        check_name_is_free(config, Path(arguments.runs))
    return arguments


def games_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``games.py``: ``games``, ``seeds`` and ``runs``.

    Raises:
        SystemExit: if a game is unknown, or there is no seed.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    parser.add_argument(
        "games", nargs="*", help=f"games to learn: {', '.join(GAMES)} (default: all)"
    )
    parser.add_argument(
        "--seeds", type=int, default=2, help="the number of seeds, from 0 (default: 2)"
    )
    parser.add_argument(
        "--runs", type=path, default="runs", help="the folder of all runs (default: runs)"
    )
    arguments = parser.parse_args()
    with exit_on_mistake():
        check_packages()
        for name in arguments.games:
            if name not in GAMES:
                near = nearest(name, GAMES)
                raise ConfigError(f"unknown game {name!r}{near}; known: {', '.join(GAMES)}")
        if arguments.seeds < 1:
            raise ConfigError(f"expected --seeds of at least 1, got {arguments.seeds}")
    return arguments


def throughput_arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of ``throughput.py``, under the names of its options.

    An option that is None takes a default that depends on the device (``throughput/plan.py``).

    Raises:
        SystemExit: if the command line has a mistake.
    """
    end_at_once_on(signal.SIGINT)
    parser = argparse.ArgumentParser(description=description, formatter_class=Paragraphs)
    several = {"nargs": "+"}
    size = {"type": _size, "metavar": "N"}
    parser.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="cpu", help="(default: cpu)"
    )
    parser.add_argument(
        "--what", **several, choices=TITLES, help="measurements (default: all; CUDA: but train-4)"
    )
    parser.add_argument(
        "--scenarios",
        **several,
        type=_scenario,
        metavar="NAME",
        help="scenarios of VMAS, or path/to/file.py (default: balance navigation simple_spread "
        "dispersion transport discovery; CUDA: balance simple_spread)",
    )
    parser.add_argument(
        "--envs",
        **several,
        **size,
        help="numbers of environments (default: 32 600 4096; CUDA: 4096 32768 131072)",
    )
    parser.add_argument(
        "--engines",
        **several,
        choices=COLORS,
        help="engines of ours to time (default: kernel eager; CUDA: kernel)",
    )
    parser.add_argument(
        "--steps",
        **size,
        help="steps of a batch of collection (default: 25; CUDA: 100, or 25 above 65,536 "
        "environments)",
    )
    parser.add_argument(
        "--rounds", **size, help="interleaved rounds of each case (default: 7; CUDA: 3)"
    )
    parser.add_argument("--compile", action="store_true", help="run our loss under torch.compile")
    parser.add_argument("--threads", **size, default=1, help="threads of the CPU (default: 1)")
    _add_files(parser)
    arguments = parser.parse_args()
    with exit_on_mistake():
        check_packages()
    return arguments


def _add_files(parser: argparse.ArgumentParser) -> None:
    """Add the options of ``throughput.py`` that name files."""
    parser.add_argument("--json", type=new_file, help="a file for the lines of the table")
    parser.add_argument("--profile", type=Path, help="a folder for profiles of one round each")
    parser.add_argument(
        "--picture",
        type=picture,
        default=Path("throughput.png"),
        help="a file for the picture (default: throughput.png)",
    )


def _scenario(text: str) -> str:
    try:
        name = with_whole_path("env.scenario", text)
        check_vmas_scenario(name)
        return name
    except ConfigError as mistake:
        raise argparse.ArgumentTypeError(str(mistake)) from None


def _size(text: str) -> int:
    size = int(text)
    if size < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {size}")
    return size
