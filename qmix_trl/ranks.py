"""The processes of one training, as torchrun starts them: each has a rank, all hold equal weights.

Torch is imported only where there are several processes.
"""

import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from qmix_trl.errors import ConfigError, MachineError, one_line

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # the longest wait for another rank, as for its evaluation
OF_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set in the processes that torchrun starts
GRACE_SECONDS = 25  # torchrun kills a process 30 seconds after it has asked it to end


class Ranks:
    """The processes of a training of one process, which has all to itself.

    Every method is called by all ranks in the same order.

    Attributes:
        rank: the number of this process, from 0.
        size: the number of processes.
        local_rank: the number of this process on its machine.
        local_size: the number of processes on its machine.
        grace_seconds: the longest time between a signal that asks this process to end and its
            end: another rank may be gone, and this one wait for it. 0 for any.
    """

    rank, size, local_rank, local_size, grace_seconds = 0, 1, 0, 1, 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates and writes the run's files."""
        return self.rank == 0

    def add(self, values: "Tensor") -> None:
        """Replace a tensor by its sum over the ranks, in place."""

    def take_maximum(self, values: "Tensor") -> None:
        """Replace a tensor by its elementwise maximum over the ranks, in place."""

    def copy_first(self, values: "Tensor") -> None:
        """Replace a tensor by that of the first rank, in place."""

    def gathered(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; they are pickled."""
        return [value]

    def from_first(self, value: T) -> T:
        """Return the value of the first rank; other ranks' values are not looked at."""
        return value

    def by_first(self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the first rank alone; return its result in all.

        Raises:
            Exception: in all ranks, if the function raises it.
        """
        result: Any = None
        with self.all_or_none():
            if self.is_first:
                result = function(*arguments)
        return self.from_first(result)

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """Let no rank pass the end of a ``with`` block in which another one raises.

        The block may not call other ranks. An exception of another rank has the attribute
        ``is_told``: that rank tells its user.

        Raises:
            Exception: of this rank, or that of the first one that raises.
        """
        own = None
        try:
            yield
        except Exception as error:
            own = error
        errors = [own] if self.size == 1 else self.gathered(_portable(own))
        if own is not None:
            raise own
        for error in errors:
            if error is not None:
                error.__dict__["is_told"] = True
                raise error


ALONE = Ranks()


class ProcessRanks(Ranks):
    """The processes of torch's process group, which has begun."""

    def __init__(self) -> None:
        import torch.distributed as distributed

        self._distributed = distributed
        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self.local_rank = _whole_number("LOCAL_RANK", self.rank)
        self.local_size = _whole_number("LOCAL_WORLD_SIZE", self.size)
        self.grace_seconds = GRACE_SECONDS if OF_TORCHRUN in os.environ else 0

    def add(self, values: "Tensor") -> None:
        """Replace a tensor by its sum over the ranks, in place, equal bit for bit in all."""
        self._call("all_reduce", values)

    def take_maximum(self, values: "Tensor") -> None:
        """Replace a tensor by its elementwise maximum over the ranks, in place."""
        self._call("all_reduce", values, op=self._distributed.ReduceOp.MAX)

    def copy_first(self, values: "Tensor") -> None:
        """Replace a tensor by that of the first rank, in place."""
        self._call("broadcast", values, src=0)

    def gathered(self, value: T) -> list[T]:
        """Return the values of all ranks, by rank; they are pickled."""
        values: list[Any] = [None] * self.size
        self._call("all_gather_object", values, value)
        return values

    def from_first(self, value: T) -> T:
        """Return the value of the first rank, pickled."""
        values = [value if self.is_first else None]
        self._call("broadcast_object_list", values, src=0)
        return values[0]

    def _call(self, name: str, *arguments: Any, **keywords: Any) -> None:
        """Call a function of ``torch.distributed``.

        Raises:
            MachineError: if another rank cannot be reached.
        """
        try:
            getattr(self._distributed, name)(*arguments, **keywords)
        except RuntimeError as error:
            raise MachineError(
                f"rank {self.rank} of {self.size}: another rank has ended, or cannot be reached: "
                f"{one_line(error)}; start all of them again (train.py: --resume auto)"
            ) from error


def world_size() -> int:
    """Return the number of processes of this training, as torchrun tells it; 1 without torchrun.

    Raises:
        ConfigError: if it tells no whole number.
    """
    size = _whole_number("WORLD_SIZE", 1) if "RANK" in os.environ else 1
    if size < 1:
        raise ConfigError(f"WORLD_SIZE: expected at least 1, got {size}")
    return size


def is_one_of_a_machine() -> bool:
    """Return whether this process is the one of its machine that tells mistakes all ranks make."""
    return world_size() == 1 or _whole_number("LOCAL_RANK", 0) == 0


@contextmanager
def joined_ranks() -> Iterator[Ranks]:
    """Join the processes that torchrun has started with this one, for a ``with`` block.

    Tensors on the CPU travel by gloo, those on a GPU by nccl.

    Yields:
        ``ALONE`` without torchrun, and where it has started one process.

    Raises:
        MachineError: if the others cannot be reached.
    """
    if world_size() == 1:
        yield ALONE
        return
    import torch
    import torch.distributed as distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        with _threads_that_do_not_preempt():
            distributed.init_process_group(backend, timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise MachineError(
            f"expected {world_size()} processes that torchrun has started, got {one_line(error)}; "
            "start train.py by torchrun, or without RANK and WORLD_SIZE in the environment"
        ) from error
    yield ProcessRanks()
    distributed.destroy_process_group()  # not after an error: others may be gone


@contextmanager
def _threads_that_do_not_preempt() -> Iterator[None]:
    """Let threads that begin in a ``with`` block preempt no other when they wake, on Linux.

    The thread of gloo that waits for data wakes while another one still sends, cannot take its
    lock, and tries again and again. Where it has preempted the sender, both ranks wait until the
    scheduler's next turn: 3 to 4 ms in every second transfer of one that takes 0.4 ms.
    """
    try:
        before = os.sched_getscheduler(0)
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except (AttributeError, OSError):  # another system, or a sandbox that forbids it
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, before, os.sched_param(0))


def _whole_number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"{name}: expected a whole number, as of torchrun, got {text!r}"
        ) from None


def _portable(error: Exception | None) -> Exception | None:
    """Return an exception that other processes can load: itself, or its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # a class of a user's own may raise anything
        return RuntimeError(one_line(error) if error else "")
    return error
