"""A time limit for code of a scenario that may never end, such as draws until all positions fit."""

import ctypes
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from qmix_trl.errors import ConfigError

POLL_SECONDS = 0.5


class NoEnd(ConfigError):
    """A scenario's code did not end within its time limit."""


class _OutOfTime(BaseException):
    """Ends the code; a scenario's ``except Exception`` does not catch it."""


class _Watcher(threading.Thread):
    """Raises ``_OutOfTime`` in each thread whose deadline has passed."""

    def __init__(self) -> None:
        super().__init__(name="time limits", daemon=True)
        self._deadlines: dict[int, float] = {}  # by the thread's number
        self._lock = threading.Lock()

    def run(self) -> None:
        """Watch as long as the process lives."""
        while True:
            time.sleep(POLL_SECONDS)
            with self._lock:
                now = time.monotonic()
                for thread in [t for t, end in self._deadlines.items() if end < now]:
                    del self._deadlines[thread]
                    exception = ctypes.py_object(_OutOfTime)
                    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), exception)

    def begin(self, seconds: float) -> bool:
        """Watch the present thread for so many seconds; return whether nothing watched it yet."""
        with self._lock:
            thread, end = threading.get_ident(), time.monotonic() + seconds
            return self._deadlines.setdefault(thread, end) == end

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
        seconds: the limit. A call of a library is not interrupted, only the Python code between.
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
