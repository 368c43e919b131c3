"""A stranger's program: their environment, TorchRL's workers and exploration, our loss."""

import itertools

import pytest
import stranger
import torch
from tensordict import TensorDict
from torchrl.envs import check_env_specs


def test_the_best_return_of_the_environment():
    n_plans = 3**stranger.STEPS
    plans = torch.tensor(list(itertools.product(range(3), repeat=stranger.STEPS)))
    pairs = torch.stack(
        [plans[:, None].expand(n_plans, n_plans, -1), plans.expand(n_plans, -1, -1)]
    )
    moves = pairs.reshape(2, -1, stranger.STEPS)  # of both, in all pairs of plans
    env = stranger.Raid(moves.shape[1])
    env.reset()
    total, legal = torch.zeros(moves.shape[1]), torch.ones(moves.shape[1], dtype=torch.bool)
    for t in range(stranger.STEPS):
        legal &= ~(env.dead & (moves[:, :, t].T > 0)).any(1)
        move = TensorDict({"move": moves[:, :, t].T}, env.team)
        stepped = env.step(TensorDict({"adversary": move}, env.batch_size))
        total += stepped["next", "score"][:, 0]
    assert total[legal].max().item() == pytest.approx(stranger.BEST)


@pytest.mark.filterwarnings("ignore")
def test_the_environment_is_a_team():
    check_env_specs(stranger.make_team())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_program_learns_the_best_return():
    assert stranger.train().tolist() == pytest.approx([stranger.BEST] * 8)
