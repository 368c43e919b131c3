"""Copy a configuration to edit it: python recipes/copy_config.py [NAME [FOLDER | FILE.yaml]]

The file of a scenario that the configuration names is copied, too. Without NAME it lists the
configurations that come with the recipes, a line for each task.
"""

import argparse
import re
import shutil
from pathlib import Path

from support.commands import typed
from support.shipped import shipped_config, shipped_configs
from support.terminal import Paragraphs, filled

from qmix_trl.errors import ConfigError, exit_on_mistake

SCENARIO_FILE = re.compile(r"^ +scenario: (\S+\.py)", re.MULTILINE)


def copy_config(name: str, target: Path) -> list[Path]:
    """Copy a configuration, and the scenario's file that it names; return the new files.

    Args:
        name: of a configuration that comes with the recipes.
        target: the new file if it ends in .yaml, else the folder of the copies; a folder that does
            not exist is made.

    Raises:
        ConfigError: if there is no such configuration, or a file is there already or cannot be
            written.
    """
    source = shipped_config(name)
    text = source.read_text("utf-8")
    files = [source.parent / path for path in SCENARIO_FILE.findall(text)]
    for file, path in zip(files, SCENARIO_FILE.findall(text), strict=True):
        text = text.replace(path, file.name)  # which is beside the copy
    is_file = target.suffix == ".yaml"
    folder, new = (target.parent, target.name) if is_file else (target, source.name)
    copies = [folder / new, *(folder / file.name for file in files)]
    for copy in copies:
        if copy.exists():
            raise ConfigError(f"{copy} exists and is not overwritten; choose another name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copies[0].write_text(text, "utf-8")
        for file, copy in zip(files, copies[1:], strict=True):
            shutil.copyfile(file, copy)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written: {error.strerror}") from None
    return copies


def listing() -> str:
    """Return the names of all configurations, a line for each task."""
    by_task: dict[str, list[str]] = {}
    for name in shipped_configs():
        by_task.setdefault(name.partition("_")[0], []).append(name)
    return "\n".join(filled(" ".join(names)) for names in by_task.values())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Paragraphs)
    parser.add_argument("name", nargs="?", help="such as balance_quick; without it, list all")
    parser.add_argument(
        "target", nargs="?", type=Path, default=Path(), help="a folder, or FILE.yaml (default: .)"
    )
    arguments = parser.parse_args()
    with exit_on_mistake():
        if arguments.name is None:
            print(listing())
            print(f"next: {typed('copy', 'balance_quick')}")
        else:
            copies = copy_config(arguments.name, arguments.target)
            print(f"copied: {' '.join(map(str, copies))}")
            print(f"next: {typed('train', copies[0])}")
