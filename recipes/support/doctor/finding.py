"""The lines of ``doctor.py``."""

from dataclasses import dataclass
from typing import Literal

from support.terminal import filled

NAME_WIDTH = 14
INDENT = " " * 10


@dataclass(frozen=True)
class Finding:
    """One thing that a run uses.

    Attributes:
        state: "missing" and "wrong" have a remedy.
        name: of the thing.
        detail: its version, size or place; or the fault.
        remedy: the command, or a few words.
        is_needed: whether no run works without it.
    """

    state: Literal["ok", "missing", "wrong"]
    name: str
    detail: str
    remedy: str = ""
    is_needed: bool = False

    @property
    def ends_runs(self) -> bool:
        """Whether no run works."""
        return self.is_needed and self.state != "ok"

    def __str__(self) -> str:
        text = f"{self.state:<9} {self.name:<{NAME_WIDTH}} {self.detail}"
        return f"{text}; {self.remedy}" if self.remedy else text


def show(finding: Finding) -> None:
    """Print a finding: in a terminal as lines that fit, else as one line."""
    print(filled(str(finding), INDENT), flush=True)
