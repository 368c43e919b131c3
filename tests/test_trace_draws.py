"""Random numbers of a step: their law, their independence and their source."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from compiled_tools import BOUNDS, occupied_by
from scipy import stats
from vmas.simulator.utils import ScenarioUtils

from qmix_trl.envs.compiled.trace import draws

RARE = 1e-3  # a p-value below this with a fixed seed is a wrong law, not chance


@pytest.mark.parametrize(
    ("key", "counter", "words"),
    [  # Random123's kat_vectors, threefry2x32 of 20 rounds
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 2, (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_equals_its_published_vectors(key, counter, words):
    x, y = draws.threefry(torch.tensor(key), torch.tensor([counter[0]]), counter[1])
    assert (x.item(), y.item()) == words


KEY = torch.tensor([11, 7])
LAWS = {"uniform": (stats.uniform, 1 / 2, 1 / 12), "normal": (stats.norm, 0, 1)}


@pytest.mark.parametrize("kind", LAWS)
def test_draws_have_the_distribution_of_their_kind(kind):
    law, mean, variance = LAWS[kind]
    numbers = draws.draw(kind, KEY, 5000, 3, (2, 2)).double().numpy()  # [E, 2, 2]
    assert numbers.shape == (5000, 2, 2)
    assert stats.kstest(numbers.ravel(), law.cdf).pvalue > RARE
    n = numbers.size
    assert abs(numbers.mean() - mean) < 4 * math.sqrt(variance / n)
    # The variance of a sample's variance is (fourth central moment - variance^2) / n.
    spread = float(law.moment(4) - 1) if kind == "normal" else 1 / 80 - 1 / 144
    assert abs(numbers.var() - variance) < 4 * math.sqrt(spread / n)


@pytest.mark.parametrize("kind", LAWS)
def test_neighbouring_draws_are_uncorrelated(kind):
    numbers = draws.draw(kind, KEY, 5000, 0, (4,))  # [E, 4]
    later = draws.draw(kind, KEY + torch.tensor([0, 1]), 5000, 0, (4,))
    other_seed = draws.draw(kind, KEY + torch.tensor([1, 0]), 5000, 0, (4,))
    for neighbour in (numbers.roll(1, 0), numbers.roll(1, 1), later, other_seed):
        r = np.corrcoef(numbers.flatten(), neighbour.flatten())[0, 1]
        assert abs(r) < 4 / math.sqrt(numbers.numel())


@pytest.mark.parametrize("kind", LAWS)
def test_environments_can_draw_the_numbers_of_others(kind):
    all_numbers = draws.draw(kind, KEY, 5, 2, (3,))  # [E, 3]
    occupied = torch.rand(5, 4, 2, generator=torch.Generator().manual_seed(0))
    spawned = draws.spawn(occupied, KEY, 1, 0.3, *BOUNDS)
    others = torch.tensor([3, 0, 3])
    with draws.as_environments(others):
        repeated = draws.draw(kind, KEY, 3, 2, (3,))
        again = draws.spawn(occupied[others], KEY, 1, 0.3, *BOUNDS)
    assert torch.equal(repeated, all_numbers[others])
    assert torch.equal(again, spawned[others])
    assert torch.equal(draws.draw(kind, KEY, 5, 2, (3,)), all_numbers)


@pytest.mark.parametrize("kind", LAWS)
def test_a_number_does_not_depend_on_the_other_numbers_of_the_call(kind):
    together = draws.draw(kind, KEY, 6, 0, (5,))
    apart = [draws.draw(kind, KEY, 6, first, (n,)) for first, n in ((0, 2), (2, 3))]
    assert torch.equal(together, torch.cat(apart, 1))
    assert torch.equal(together[:4], draws.draw(kind, KEY, 4, 0, (5,)))


def test_uniform_numbers_have_24_bits_below_1():
    ends = draws.unit(torch.tensor([0, 255, 256, 0xFFFFFFFF]))
    # 0, 0, 2^-24 and 1 - 2^-24: all floats.
    assert ends.tolist() == [0.0, 0.0, 2.0**-24, 1 - 2.0**-24]


def quarters(kind, shape):
    """Return 1/4 everywhere for uniform numbers, -1/4 for normal ones: a source of draws."""
    return torch.full(shape, 0.25 if kind == "uniform" else -0.25)


@pytest.mark.parametrize(
    ("function", "shape", "value"),
    [
        (lambda: torch.rand(3, 2), (3, 2), 0.25),
        (lambda: torch.rand((3, 2)), (3, 2), 0.25),
        (lambda: torch.rand(size=(3, 2)), (3, 2), 0.25),
        (lambda: torch.rand(3), (3,), 0.25),
        (lambda: torch.rand_like(torch.ones(2, 3)), (2, 3), 0.25),
        (lambda: torch.randn(3, 2), (3, 2), -0.25),
        (lambda: torch.randn_like(torch.ones(4)), (4,), -0.25),
        (lambda: torch.ones(4).uniform_(), (4,), 0.25),
        (lambda: torch.ones(4).uniform_(2, 4), (4,), 2.5),  # 2 + 2/4
        (lambda: torch.ones(4).uniform_(to=4), (4,), 1.0),
        (lambda: torch.ones(4).normal_(), (4,), -0.25),
        (lambda: torch.ones(4).normal_(1, 2), (4,), 0.5),  # 1 - 2/4
        (lambda: torch.ones(4).normal_(std=2), (4,), -0.5),
        (lambda: torch.distributions.Uniform(2.0, 4.0).sample((3,)), (3,), 2.5),
    ],
)
def test_draw_mode_returns_the_numbers_of_its_source(function, shape, value):
    with draws.DrawMode(quarters):
        drawn = function()
    assert torch.equal(drawn, torch.full(shape, value))


@pytest.mark.parametrize(
    "function",
    [
        lambda: torch.randint(3, (2,)),
        lambda: torch.randint_like(torch.ones(2), 3),
        lambda: torch.randperm(3),
        lambda: torch.bernoulli(torch.ones(2)),
        lambda: torch.multinomial(torch.ones(2), 1),
        lambda: torch.normal(torch.ones(2), torch.ones(2)),
        lambda: torch.ones(2).random_(3),
        lambda: torch.ones(2).bernoulli_(0.5),
        lambda: torch.ones(2).exponential_(),
        lambda: torch.ones(2).multinomial(1),
        lambda: torch.ones(2).bernoulli(),
        lambda: torch.ones(2).cauchy_(),
        lambda: torch.ones(2).log_normal_(),
        lambda: torch.ones(2).geometric_(0.5),
        lambda: torch.poisson(torch.ones(2)),
    ],
)
def test_draw_mode_refuses_other_distributions(function):
    with draws.DrawMode(quarters), pytest.raises(NotImplementedError, match="draws by torch"):
        function()


OCCUPIED = ((0.0, 0.0), (0.5, 0.5), (-0.8, 0.9))


def vmas_spawn(occupied, distance):
    """Return positions [E, 1, 2] drawn by VMAS's own loop."""
    world = SimpleNamespace(batch_dim=len(occupied), device="cpu")
    low, high = BOUNDS
    return ScenarioUtils.find_random_pos_for_entity(
        occupied, None, world, distance, (low[0], high[0]), (low[1], high[1])
    )


def test_spawned_positions_have_the_distribution_of_vmas():
    torch.manual_seed(0)
    occupied = occupied_by(*OCCUPIED, n_envs=3000)
    ours = draws.spawn(occupied, KEY, 0, 0.6, *BOUNDS)  # [E, 1, 2]
    theirs = vmas_spawn(occupied, 0.6)
    assert ours.shape == theirs.shape
    distances = [torch.cdist(occupied, x)[..., 0] for x in (ours, theirs)]  # [E, K]
    assert distances[0].min() >= 0.6
    pairs = [(ours[..., a], theirs[..., a]) for a in (0, 1)]
    pairs += list(zip(*(d.unbind(1) for d in distances), strict=True))
    for a, b in pairs:
        assert stats.ks_2samp(a.flatten(), b.flatten()).pvalue > RARE


def test_spawning_in_an_empty_space_is_uniform():
    position = draws.spawn(torch.zeros(4000, 0, 2), KEY, 3, 0.6, *BOUNDS)[:, 0]
    for axis, (low, high) in enumerate(zip(*BOUNDS, strict=True)):
        law = stats.uniform(low, high - low)
        assert stats.kstest(position[:, axis].numpy(), law.cdf).pvalue > RARE


def test_spawning_in_a_full_space_returns_the_last_proposal(monkeypatch):
    monkeypatch.setattr(draws, "SPAWN_TRIES", 3)
    position = draws.spawn(occupied_by((0.0, 0.0), n_envs=5), KEY, 2, 9.0, *BOUNDS)
    words = draws.threefry(KEY, torch.arange(5), 3 * draws.SPAWN_STREAM + 2)  # site 2, try 2
    x, y = (draws.unit(word) for word in words)
    expected = torch.stack([x * 2 - 1, y * 1.5 - 0.5], -1)  # the bounds' lengths are 2 and 1.5
    torch.testing.assert_close(position[:, 0], expected)


def test_spawns_of_one_step_differ():
    occupied = torch.zeros(5, 0, 2)
    first, second = (draws.spawn(occupied, KEY, site, 0.1, *BOUNDS) for site in (0, 1))
    assert not (first == second).any()
