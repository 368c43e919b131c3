"""Statistics over seeds and tasks that few runs allow (Agarwal et al. 2021, arXiv 2108.13264).

SciPy takes a second to import, and so is imported where it is used.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

RESAMPLES = 2000


def interquartile_mean(returns: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean of the middle half of the seeds; of five, it is that of the middle three."""
    from scipy import stats

    return stats.trim_mean(returns, 0.25, axis=axis)


def interval(
    statistic: Callable[..., np.ndarray], *samples: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the 95 % percentile bootstrap interval of a statistic over seeds.

    Each sample is resampled on its own: the stratified bootstrap of the paper's section 4.1.

    Args:
        statistic: of the samples, along ``axis``.
        samples: float [seeds, ..].

    Returns:
        low and high, float [..]; both are the statistic itself where there is one seed.
    """
    from scipy import stats

    if min(len(sample) for sample in samples) == 1:
        value = statistic(*samples, axis=0)
        return value, value
    found = stats.bootstrap(
        samples,
        statistic,
        n_resamples=RESAMPLES,
        axis=0,
        vectorized=True,
        method="percentile",
        random_state=0,
    )
    return found.confidence_interval.low, found.confidence_interval.high


def normalized(
    returns: Mapping[str, Mapping[str, np.ndarray]], zeros: Mapping[str, float]
) -> dict[str, list[np.ndarray]]:
    """Return the normalized returns by group: for each task, float [seeds].

    0 is a task's return without learning, 1 its best interquartile mean. Tasks in which no group
    exceeds 0 are left out, and so are groups that did not run on all other tasks.

    Args:
        returns: by task and group, float [seeds].
        zeros: the return without learning, by task.
    """
    scores: dict[str, list[np.ndarray]] = {}
    n_learned = 0
    for task, groups in returns.items():
        one = max(interquartile_mean(sample) for sample in groups.values())
        if one <= zeros[task]:
            continue
        n_learned += 1
        for group, sample in groups.items():
            score = (sample - zeros[task]) / (one - zeros[task])
            scores.setdefault(group, []).append(score)
    return {group: samples for group, samples in scores.items() if len(samples) == n_learned}


def mean_over_tasks(*samples: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean over tasks of interquartile means over seeds; a sample is a task's."""
    return np.mean([interquartile_mean(sample, axis) for sample in samples], axis=0)


def shares_above(samples: Sequence[np.ndarray], thresholds: np.ndarray) -> list[np.ndarray]:
    """Return whether scores exceed thresholds, by task: float [seeds, thresholds], 1 or 0.

    ``mean_share`` of them is the performance profile (section 4.2 of the paper), the share of runs
    above a score.
    """
    return [(sample[:, None] > thresholds).astype(float) for sample in samples]


def mean_share(*samples: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the mean over tasks of means over seeds; a sample is a task's."""
    return np.mean([sample.mean(axis) for sample in samples], axis=0)


def improvement(*samples: np.ndarray, axis: int = 0) -> np.ndarray:
    """Return the probability of improvement of X over Y (section 4.3 of the paper).

    It is the mean over tasks of the share of pairs of runs in which X's is better; equal ones count
    by half (the Mann-Whitney statistic).

    Args:
        samples: X's by task, then Y's by task, each of seeds along ``axis``.
        axis: of the seeds.
    """
    n_tasks = len(samples) // 2
    seeds_last = [np.moveaxis(sample, axis, -1) for sample in samples]
    shares = []
    for x, y in zip(seeds_last[:n_tasks], seeds_last[n_tasks:], strict=True):
        better = np.sign(x[..., :, None] - y[..., None, :])  # [.., seeds of X, seeds of Y]
        shares.append((better.mean((-2, -1)) + 1) / 2)
    return np.mean(shares, axis=0)
