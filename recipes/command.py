"""Run a recipe by its name: qmix-trl COMMAND [ARGUMENTS ..]

`qmix-trl train balance_quick` is `python recipes/train.py recipes/configs/balance_quick.yaml`.
"""

import sys
from pathlib import Path
from types import ModuleType

from qmix_trl import __version__
from qmix_trl.errors import exit_on_mistake

RECIPES = Path(__file__).resolve().parent


def main() -> None:
    """Run the recipe that the command line names.

    Raises:
        SystemExit: if there is no such recipe, or with the recipe's own exit code.
    """
    sys.path.insert(0, str(RECIPES))  # recipes import "support" from there
    from support.commands import file_of

    program, *words = sys.argv
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
    elif words[0] == "--version":
        print(f"qmix-trl {__version__}")
    else:
        with exit_on_mistake():
            file = file_of(words[0])
        run(file, program, *words)


def help_text() -> str:
    """Return the list of the commands, each with an example."""
    from support.commands import COMMANDS

    lines = [f"  {name:<11}{command.does}" for name, command in COMMANDS.items()]
    examples = [f"  qmix-trl {name} {command.example}" for name, command in COMMANDS.items()]
    end = "qmix-trl COMMAND --help explains its arguments; qmix-trl --version"
    usage = "usage: qmix-trl COMMAND [ARGUMENTS ..]"
    return "\n".join([usage, "", *lines, "", "examples:", *examples, "", end])


def run(file: str, program: str, name: str, *arguments: str) -> None:
    """Run a recipe as ``python recipes/FILE`` does, but as ``qmix-trl NAME`` in its messages.

    Args:
        file: of the recipe.
        program: that started this process.
        name: of the command.
        *arguments: of the recipe.
    """
    from support.commands import started_by

    if not program.endswith(".py"):
        started_by(program)
    sys.argv = [f"{program} {name}", *arguments]  # runpy.run_path would put the file's path here
    path = RECIPES / file
    main_module = ModuleType("__main__")
    main_module.__file__ = str(path)  # from where processes that it starts import it
    sys.modules["__main__"] = main_module
    exec(compile(path.read_bytes(), path, "exec"), vars(main_module))


if __name__ == "__main__":
    main()
