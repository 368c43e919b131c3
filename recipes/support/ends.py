"""How a recipe ends when the system or its user asks it to.

No handler here raises: an exception between any two lines of torch or tensordict can leave them in
a state from which they cannot go on, or be replaced by another exception.
"""

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FrameType
from typing import TypeVar

from qmix_trl import logs
from qmix_trl.ranks import ALONE, Ranks

EXIT_CODES = {
    signal.SIGINT: 130,
    signal.SIGTERM: 75,  # EX_TEMPFAIL of sysexits.h: try again
    signal.SIGHUP: 75,
}
UNREAD = 1  # the exit code where nobody reads the output any more
Batch = TypeVar("Batch")
SHOW_CURSOR = b"\x1b[?25h"  # a live table hides it


def end_at_once(number: int, frame: FrameType | None = None) -> None:
    """End the process and those that it has started, without any other code.

    The files that it has written stay.
    """
    # Nothing is imported in a handler, also no half of a module.
    build = sys.modules.get("qmix_trl.native.build")
    end_after_killing = getattr(build, "end_after_killing", None)
    if end_after_killing is None:
        _end(number)
    else:
        end_after_killing(partial(_end, number))


def _end(number: int) -> None:
    _kill_workers()
    if os.isatty(1):
        os.write(1, SHOW_CURSOR)
    os.write(2, b"interrupted\n")
    os._exit(EXIT_CODES[signal.Signals(number)])


def _kill_workers() -> None:
    """Kill the processes of environments, which would each tell that this one is gone."""
    multiprocessing = sys.modules.get("multiprocessing")
    active_children = getattr(multiprocessing, "active_children", None)
    if active_children is not None:
        for worker in active_children():
            worker.kill()


def end_at_once_on(*numbers: int) -> None:
    """Let signals end the process at once; those that it was started to ignore stay ignored."""
    for number in numbers:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, end_at_once)


class Stop:
    """Notes the signals that ask a run to stop; use it in a ``with`` statement.

    The first one is noted and nothing else happens. A second Ctrl-C ends the process at once. A
    reader that leaves the standard output, such as ``head``, asks too. Several ranks stop after
    the same batch, whichever of them was asked.

    Args:
        ranks: that train together.

    Attributes:
        number: the signal that asked; None if none has.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        self.number: int | None = None
        self._ranks = ranks
        self._agreed = 0

    def __enter__(self) -> "Stop":
        self._before = {
            number: signal.signal(number, self._note)
            for number in EXIT_CODES
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *error: object) -> None:
        before: Mapping[int, object] = self._before
        for number, handler in before.items():
            signal.signal(number, handler)

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches until the run is asked to stop."""
        for batch in batches:
            yield batch
            self._agreed = max(self._ranks.gathered(self.exit_code))
            if self._agreed:
                return

    @property
    def exit_code(self) -> int:
        """The exit code of the signal or of the reader that left, of any rank; 0 without any."""
        if self._agreed or self.number is None:
            return self._agreed or (UNREAD if logs.is_unread() else 0)
        return EXIT_CODES[signal.Signals(self.number)]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            end_at_once(number)
        if self.number is None and self._ranks.grace_seconds:
            signal.alarm(self._ranks.grace_seconds)  # ends also a call of C++ that never returns
        self.number = number if self.number is None else self.number
