"""Lines that fit a terminal; a file or a pipe gets whole lines."""

import argparse
import logging
import sys
import textwrap
from collections.abc import Iterable, Sequence
from functools import cache

from qmix_trl.logs import terminal_width

INDENT = " " * 4
GAP = 2  # between the cells of a table


class Paragraphs(argparse.HelpFormatter):
    """A help whose description keeps its paragraphs."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(part, width, indent) for part in text.split("\n\n"))


@cache
def tell_builds() -> None:
    """Let a terminal show each build, as a kernel takes a quarter of a minute."""
    if sys.stderr is not None and sys.stderr.isatty():
        log = logging.getLogger("qmix_trl")
        log.addHandler(logging.StreamHandler())
        log.setLevel(logging.INFO)


def filled(text: str, indent: str = INDENT) -> str:
    """Return a text, in a terminal in lines that fit and break between words.

    Args:
        text: one line.
        indent: of the lines after the first.
    """
    width = terminal_width()
    if width is None:
        return text
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def cells_line(cells: Iterable[str], gap: int = GAP) -> str:
    """Return a line of padded cells, in a terminal broken between cells where it is too narrow.

    Lines whose cells have the same widths break at the same places.

    Args:
        cells: of the line.
        gap: the number of spaces between them.
    """
    width, lines = terminal_width(), []
    for cell in cells:
        if lines and (width is None or len(lines[-1]) + gap + len(cell) <= width):
            lines[-1] += " " * gap + cell
        else:
            lines.append(f"{INDENT if lines else ''}{cell}")
    return "\n".join(line.rstrip() for line in lines if line.strip())


def aligned(lines: Sequence[Sequence[str]], n_texts: int) -> list[Sequence[str]]:
    """Return lines of cells, padded to the widths of their columns.

    Args:
        lines: of as many cells each.
        n_texts: the number of first columns of text, aligned left; numbers are aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        [
            cell.ljust(width) if i < n_texts else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    ]
