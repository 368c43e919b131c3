"""Random numbers of a step, as a pure function of (seed, step, environment, counter).

A compiled step cannot draw from a shared, sequential generator. Each number is computed from its
own counter by Threefry-2x32 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"),
so that a kernel, inductor and unmodified VMAS under ``DrawMode`` draw the same numbers.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
KEY_PARITY = 0x1BD11BDA
WORD = 0xFFFFFFFF
SPAWN_TRIES = 4096  # VMAS has no limit
SPAWN_STREAM = 1 << 24  # the counters of spawn i start at (i + 1) * SPAWN_STREAM
# By which environments draw; None where each draws its own random numbers.
_NUMBERS: ContextVar[Tensor | None] = ContextVar("numbers", default=None)


@contextmanager
def as_environments(numbers: Tensor) -> Iterator[None]:
    """Let environments draw the random numbers of others within a ``with`` block.

    So VMAS in another number of environments repeats those of a batch.

    Args:
        numbers: int64 [E], of the environments whose random numbers the E environments draw.
    """
    token = _NUMBERS.set(numbers)
    try:
        yield
    finally:
        _NUMBERS.reset(token)


def environment_numbers(n_envs: int, device: torch.device) -> Tensor:
    """Return the numbers of the environments that draw, int64 [E]."""
    numbers = _NUMBERS.get()
    return torch.arange(n_envs, device=device) if numbers is None else numbers[:n_envs].to(device)


def threefry(key: Tensor, environments: Tensor, counter: Tensor | int) -> tuple[Tensor, Tensor]:
    """Return two random words for each environment: int64 [..] in [0, 2**32).

    Args:
        key: int64 [2], seed and step.
        environments: int64 [..], the first word of the counter.
        counter: int64 [..] or one integer, the second word of the counter.
    """
    keys = (key[0], key[1], key[0] ^ key[1] ^ KEY_PARITY)
    x = (environments + keys[0]) & WORD
    y = (counter + keys[1] + torch.zeros_like(x)) & WORD
    for block in range(5):
        first = 4 * (block % 2)
        for rotation in ROTATIONS[first : first + 4]:
            x = (x + y) & WORD
            y = (((y << rotation) | (y >> (32 - rotation))) & WORD) ^ x
        x = (x + keys[(block + 1) % 3]) & WORD
        y = (y + keys[(block + 2) % 3] + block + 1) & WORD
    return x, y


def unit(word: Tensor) -> Tensor:
    """Return random words int64 [..] as float32 [..] in [0, 1), each of 24 bits."""
    return (word >> 8).to(torch.float32) * 2**-24


def draw(kind: str, key: Tensor, n_envs: int, first: int, shape: Sequence[int]) -> Tensor:
    """Return random numbers of a step: float32 [E, *shape].

    Args:
        kind: "uniform" in [0, 1), or "normal" with mean 0 and variance 1 (Box and Muller 1958).
        key: int64 [2], seed and step.
        n_envs: E.
        first: the counter of the first number; the others follow.
        shape: the shape of one environment's numbers.
    """
    size = math.prod(shape)
    environments = environment_numbers(n_envs, key.device)[:, None]  # [E, 1]
    numbers = first + torch.arange(size, device=key.device)  # [size]
    x, y = threefry(key, environments.expand(n_envs, size), numbers)
    if kind == "uniform":
        return unit(x).view(n_envs, *shape)
    radius = torch.sqrt(-2 * torch.log(1 - unit(x)))
    return (radius * torch.cos(2 * math.pi * unit(y))).view(n_envs, *shape)


@torch.library.custom_op("qmix_trl::spawn", mutates_args=())
def spawn(
    occupied: Tensor,
    key: Tensor,
    site: int,
    min_distance: float,
    low: list[float],
    high: list[float],
) -> Tensor:
    """Return a random position at a distance from occupied positions: float32 [E, 1, 2].

    Each environment takes its first proposal that is far enough, as in VMAS's
    ``find_random_pos_for_entity``, or its last of ``SPAWN_TRIES`` if none is.

    Args:
        occupied: float32 [E, K, 2], positions of K entities.
        key: int64 [2], seed and step.
        site: the number of this call within the step.
        min_distance: the least distance to every occupied position.
        low: the lower bounds of x and y.
        high: the upper bounds of x and y.
    """
    n_envs = occupied.shape[0]
    environments = environment_numbers(n_envs, occupied.device)
    position = occupied.new_zeros(n_envs, 2)
    waiting = torch.ones(n_envs, dtype=torch.bool, device=occupied.device)
    for i in range(SPAWN_TRIES):
        words = threefry(key, environments, (site + 1) * SPAWN_STREAM + i)
        proposed = [
            unit(word) * (top - bottom) + bottom
            for word, top, bottom in zip(words, high, low, strict=True)
        ]
        position = torch.where(waiting[:, None], torch.stack(proposed, -1), position)
        distance = torch.linalg.vector_norm(occupied - position[:, None], dim=-1)  # [E, K]
        waiting = (distance < min_distance).any(-1)
        if not waiting.any():
            break
    return position[:, None]


@spawn.register_fake
def _(occupied, key, site, min_distance, low, high):
    return occupied.new_empty(occupied.shape[0], 1, 2)


class DrawMode(TorchFunctionMode):
    """Replaces random numbers of torch's generator by numbers of ``source``.

    Args:
        source: ``source(kind, shape)`` returns float32 numbers of that shape; ``kind`` is
            "uniform" or "normal".

    Raises:
        NotImplementedError: if code draws from another distribution.
    """

    def __init__(self, source: Callable[[str, tuple[int, ...]], Tensor]) -> None:
        super().__init__()
        self.source = source

    def __torch_function__(
        self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in DRAWS and not {"generator", "out"}.isdisjoint(kwargs):
            raise NotImplementedError(f"it draws by torch.{function.__name__} of a generator")
        if function in (torch.rand, torch.randn):
            sizes = args[0] if len(args) == 1 and not isinstance(args[0], int) else args
            sizes = kwargs.get("size", sizes)
            return self.source(KINDS[function], tuple(sizes)).to(kwargs.get("dtype"))
        if function in (torch.rand_like, torch.randn_like):
            dtype = kwargs.get("dtype") or args[0].dtype
            return self.source(KINDS[function], tuple(args[0].shape)).to(dtype)
        if function is torch.Tensor.uniform_:
            low, high = _arguments(args, kwargs, {"from": 0.0, "to": 1.0})
            drawn = self.source("uniform", tuple(args[0].shape))
            return args[0].copy_(drawn * (high - low) + low)
        if function is torch.Tensor.normal_:
            mean, std = _arguments(args, kwargs, {"mean": 0.0, "std": 1.0})
            return args[0].copy_(self.source("normal", tuple(args[0].shape)) * std + mean)
        if function in OTHER_DRAWS:
            raise NotImplementedError(f"it draws by torch.{function.__name__}")
        return function(*args, **kwargs)


KINDS = {
    torch.rand: "uniform",
    torch.randn: "normal",
    torch.rand_like: "uniform",
    torch.randn_like: "normal",
}
OTHER_DRAWS = (
    torch.rrelu,
    torch.dropout,
    torch.randint,
    torch.randint_like,
    torch.randperm,
    torch.bernoulli,
    torch.multinomial,
    torch.normal,
    torch.Tensor.random_,
    torch.Tensor.bernoulli_,
    torch.Tensor.exponential_,
    torch.Tensor.multinomial,
    torch.Tensor.bernoulli,
    torch.Tensor.cauchy_,
    torch.Tensor.geometric_,
    torch.Tensor.log_normal_,
    torch.poisson,
)

DRAWS = (*KINDS, *OTHER_DRAWS, torch.Tensor.uniform_, torch.Tensor.normal_)


def _arguments(args: tuple, kwargs: dict, defaults: dict[str, float]) -> list[float]:
    """Return the arguments after the tensor, whether given by position or by name."""
    given = dict(zip(defaults, args[1:], strict=False)) | kwargs
    return [given.get(name, default) for name, default in defaults.items()]
