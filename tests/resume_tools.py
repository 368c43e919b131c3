"""Comparison of a run that is saved and resumed with an unbroken one."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from collect_tools import CounterEnv, make_agent
from tensordict import TensorDictBase

from qmix_trl import (
    EpsilonGreedyAction,
    load_run,
    make_collector,
    make_policy,
    save_run,
    with_memory,
)

Parts = dict[str, Any]


def exact(value: Any) -> Any:
    """Return a nested value with tensors as dtype, shape and bytes, so that ``==`` is exact."""
    if isinstance(value, torch.Tensor):
        plain = value.detach().cpu().contiguous()
        content = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
        return value.dtype, tuple(value.shape), content
    if isinstance(value, TensorDictBase):
        return {
            "batch_size": tuple(value.batch_size),
            **{key: exact(value.get(key)) for key in value.keys(True, True)},
        }
    if isinstance(value, Mapping):
        return {key: exact(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value), [exact(part) for part in value]
    return type(value), value


def check_resumes(
    folder: Path,
    make: Callable[[int], Parts],
    advance: Callable[[Parts], Any],
    *,
    before: int,
    after: int,
) -> list[Any]:
    """Check that parts, saved and loaded into new ones, continue as if nothing had happened.

    Args:
        folder: for checkpoints.
        make: returns the parts, by a seed.
        advance: lets the parts take a step, and returns all that it computes.
        before: the number of steps before the save.
        after: the number of steps after it.

    Returns:
        The values of the unbroken steps after the save.
    """
    torch.manual_seed(0)
    whole = make(0)
    for _ in range(before):
        advance(whole)
    save_run(folder, **whole)
    expected = [exact(advance(whole)) for _ in range(after)]
    torch.manual_seed(1)
    other = make(1)
    advance(other)  # so that it differs, and has all that a run under way has
    load_run(folder, **other)
    got = [exact(advance(other)) for _ in range(after)]
    assert got == expected
    assert len({str(step) for step in expected}) == after  # each step computes something else
    return expected


def batch_of(seed):
    """Return a batch [4, 5] of random steps that a loss accepts."""
    env = CounterEnv(4)
    env.set_seed(seed)
    collector = make_collector(
        with_memory(env, make_agent(env)),
        make_policy(make_agent(env), EpsilonGreedyAction(1.0, 1.0, 0, seed=seed)),
        rows="slices",
        steps=5,
        n_batches=1,
    )
    (batch,) = list(collector)
    return batch
