"""Random batches and losses for the tests of the loss and of the update."""

import torch
from tensordict import TensorDict

from qmix_trl import FeedforwardAgent, QMixer, QMixLoss, RecurrentAgent, VDNMixer
from qmix_trl.keys import (
    ACTION,
    ACTION_MASK,
    AGENT_REWARD,
    DONE,
    IS_INIT,
    OBSERVATION,
    REWARD,
    STATE,
    TERMINATED,
    next_key,
)

N, O, A, S = 2, 3, 4, 5  # noqa: E741


def random_batch(n_rows, n_steps, *, seed=0, ends=None, mixed_masks=True):
    """Return random data [B, T], with a reset after each of ``ends``.

    ``ends``: bool [B, T], the steps that are done; a random half of them terminates.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(n_rows, *shape, generator=generator, dtype=torch.float64)

    def flags(p, *shape):
        return torch.rand(n_rows, *shape, generator=generator) < p

    batch = TensorDict({}, [n_rows, n_steps])
    available = flags(0.7, n_steps + 1, N, A) | ~torch.tensor(mixed_masks)
    available[..., 0] = True
    sequences = ((OBSERVATION, normal(n_steps + 1, N, O)), (STATE, normal(n_steps + 1, S)))
    for key, sequence in (*sequences, (ACTION_MASK, available)):
        batch[key], batch[next_key(key)] = sequence[:, :-1], sequence[:, 1:].clone()
    batch[ACTION] = torch.randint(A, (n_rows, n_steps, N), generator=generator)
    batch[next_key(REWARD)], batch[next_key(AGENT_REWARD)] = (
        normal(n_steps, 1),
        normal(n_steps, N, 1),
    )
    done = torch.zeros(n_rows, n_steps, 1, dtype=torch.bool) if ends is None else ends.unsqueeze(-1)
    batch[next_key(DONE)] = done
    batch[next_key(TERMINATED)] = done & flags(0.5, n_steps, 1)
    batch[IS_INIT] = torch.zeros(n_rows, n_steps, 1, dtype=torch.bool)
    batch[IS_INIT][:, 0] = True
    batch[IS_INIT][:, 1:] |= done[:, :-1]
    # Where a reset follows, the true next observation differs from the next step's.
    resets = done[..., 0]
    for key, shape in ((OBSERVATION, (N, O)), (STATE, (S,))):
        batch[next_key(key)][resets] = torch.randn(
            int(resets.sum()), *shape, generator=generator, dtype=torch.float64
        )
    return batch


def make_loss(kind="recurrent", mixer="qmix", seed=3, **arguments):
    """Return a loss in float64 whose targets differ from its online networks."""
    torch.manual_seed(seed)
    if kind == "recurrent":
        agent = RecurrentAgent(N, O, A, hidden_dim=6, dtype=torch.float64)
    else:
        agent = FeedforwardAgent(N, O, A, use_last_action=True, dtype=torch.float64)
    mixers = {"qmix": lambda: QMixer(N, S, 4, dtype=torch.float64), "vdn": VDNMixer}
    mixing = mixers[mixer]() if mixer in mixers else None
    loss = QMixLoss(agent, mixing, **{"gamma": 0.9, **arguments})
    with torch.no_grad():
        for parameter in loss.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return loss


def cut(batch, row, start, end):
    """Return one episode [1, end - start] of a batch as a row of its own."""
    return batch[row : row + 1, start:end].clone()


def some_ends(n_rows, n_steps, seed=5):
    """Return random ends of episodes, bool [B, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n_rows, n_steps, generator=generator) < 0.25
