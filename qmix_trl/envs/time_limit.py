"""A time limit for code of a scenario that may never end, such as draws until all positions fit.

It is a limit of processor time, so that code on a busy machine is not given up on. Code that waits
for something uses none, and has a longer limit.
"""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from qmix_trl.errors import ConfigError

POLL_SECONDS = 0.5
WAITING = 10  # times as long may code take that waits


class NoEnd(ConfigError):
    """A scenario's code did not end within its time limit."""


class _OutOfTime(BaseException):
    """Ends the code; a scenario's ``except Exception`` does not catch it."""


@dataclass(frozen=True)
class _Deadline:
    """The end of a thread's time.

    Attributes:
        clock: of the thread's processor time; of time, where the system has no such clock.
        busy: the end by this clock.
        waiting: the end by ``time.monotonic``.
    """

    clock: int
    busy: float
    waiting: float

    def is_over(self) -> bool:
        """Return whether the time is over."""
        is_late = time.monotonic() >= self.waiting
        return is_late or time.clock_gettime(self.clock) >= self.busy


def _deadline(thread: int, seconds: float) -> _Deadline:
    """Return the deadline of a thread that has so many seconds from now."""
    clock_of = getattr(time, "pthread_getcpuclockid", None)  # not on every system
    clock = time.CLOCK_MONOTONIC if clock_of is None else clock_of(thread)
    waiting = time.monotonic() + WAITING * seconds
    return _Deadline(clock, time.clock_gettime(clock) + seconds, waiting)


class _Watcher(threading.Thread):
    """Raises ``_OutOfTime`` in each thread whose deadline has passed."""

    def __init__(self) -> None:
        super().__init__(name="time limits", daemon=True)
        self._deadlines: dict[int, _Deadline] = {}  # by the thread's number
        self._lock = threading.Lock()

    def run(self) -> None:
        """Watch as long as the process lives."""
        while True:
            time.sleep(POLL_SECONDS)
            with self._lock:
                for thread in [t for t, end in self._deadlines.items() if end.is_over()]:
                    del self._deadlines[thread]
                    exception = ctypes.py_object(_OutOfTime)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)

    def begin(self, seconds: float) -> bool:
        """Watch the present thread for so many seconds; return whether nothing watched it yet."""
        with self._lock:
            thread = threading.get_ident()
            end = _deadline(thread, seconds)
            return self._deadlines.setdefault(thread, end) is end

    def end(self) -> None:
        """Watch the present thread no longer.

        Raises:
            _OutOfTime: if its time is over.
        """
        with self._lock:
            in_time = self._deadlines.pop(threading.get_ident(), None) is not None
        while not in_time:  # until the exception arrives
            time.sleep(0)


_watcher = _Watcher()


def _running_watcher() -> _Watcher:
    """Return the watcher of this process; a forked one starts its own."""
    global _watcher
    if not _watcher.is_alive():
        _watcher = _Watcher()
        _watcher.start()
    return _watcher


@contextmanager
def ended_within(seconds: float, of: str) -> Iterator[None]:
    """End a ``with`` block that takes too long; a block within another has the other's limit.

    Args:
        seconds: of processor time; code that waits has ``WAITING`` times as long. A call of a
            library is not interrupted, only the Python code between.
        of: the block's task, for the message.

    Raises:
        NoEnd: if it takes longer.
    """
    watcher = _running_watcher()
    if not watcher.begin(seconds):
        yield
        return
    try:
        try:
            yield
        except _OutOfTime:
            raise
        except BaseException:
            watcher.end()
            raise
        watcher.end()
    except _OutOfTime:
        raise NoEnd(f"{of} did not end within {seconds:g} s") from None
