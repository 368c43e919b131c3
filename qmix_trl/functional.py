"""The maths of value factorisation as pure functions: tensors in, tensors out.

A suffix names the time of a tensor's entry ``t``: ``_t`` this step, ``_tp1`` the next step.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def first_episode_mask(done_t: Tensor) -> Tensor:
    """Return the mask of the steps that belong to the first episode of each row.

    Args:
        done_t: bool [B, T, 1], the last steps of episodes.

    Returns:
        bool [B, T]; True up to and including the first step that ends an episode.
    """
    ended = done_t[..., 0].cumsum(1)  # [B, T]
    return (ended - done_t[..., 0].to(ended.dtype)) == 0


def first_steps(done_t: Tensor) -> Tensor:
    """Return the flags of first steps of episodes, in rows that begin with an episode.

    Args:
        done_t: bool [B, T, 1], the last steps of episodes; another episode follows each.

    Returns:
        bool [B, T, 1].
    """
    return torch.cat([torch.ones_like(done_t[:, :1]), done_t[:, :-1]], 1)


def following(flag_t: Tensor) -> Tensor:
    """Return the next step's flag ``flag_{t+1}``, and False after the last step.

    Args:
        flag_t: bool [B, T, 1].

    Returns:
        bool [B, T, 1].
    """
    return torch.cat([flag_t[:, 1:], torch.zeros_like(flag_t[:, :1])], 1)


def episode_returns(reward_t: Tensor, done_t: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sums of rewards since the last reset, before and after each step.

    On the CPU they are added step by step, with the roundings of TorchRL's ``RewardSum``; on a GPU
    in a few operations over all steps, in float64.

    Args:
        reward_t: float [E, T].
        done_t: bool [E, T], the last steps of episodes; a reset follows each.
        first: float [E], the sums before the first step.

    Returns:
        float [E, T] and float [E, T].
    """
    return (_summed_at_once if reward_t.is_cuda else _summed_by_step)(reward_t, done_t, first)


def _summed_by_step(reward_t: Tensor, done_t: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    before, after = torch.empty_like(reward_t), torch.empty_like(reward_t)
    for t in range(reward_t.shape[1]):
        before[:, t] = first
        after[:, t] = first + reward_t[:, t]
        first = after[:, t].masked_fill(done_t[:, t], 0)
    return before, after


def _summed_at_once(reward_t: Tensor, done_t: Tensor, first: Tensor) -> tuple[Tensor, Tensor]:
    steps = torch.arange(1, reward_t.shape[1] + 1, device=reward_t.device)
    sums = pad(reward_t.double().cumsum(1), (1, 0))  # [E, T+1], over the steps before each
    # The number of steps up to the last reset before each step, 0 where there is none.
    until_reset = pad((steps * done_t).cummax(1).values, (1, 0))[:, :-1]  # [E, T]
    of_others = sums.gather(1, until_reset)
    of_others = torch.where(until_reset == 0, -first.double().unsqueeze(1), of_others)
    before, after = sums[:, :-1] - of_others, sums[:, 1:] - of_others
    return before.to(reward_t.dtype), after.to(reward_t.dtype)


def cut_mask(is_init_t: Tensor, terminated_t: Tensor, mask: Tensor) -> Tensor:
    """Return the mask of cuts: valid steps that do not terminate, with a reset at the next step.

    At a cut, the next observation of the row belongs to another episode, so that a target
    bootstraps from the true last observation instead.

    Args:
        is_init_t: bool [B, T, 1], the first steps of episodes; False in padding.
        terminated_t: bool [B, T, 1].
        mask: bool [B, T], the valid steps.

    Returns:
        bool [B, T].
    """
    return (following(is_init_t) & ~terminated_t)[..., 0] & mask


def joined_observations(
    observation_t: Tensor, observation_tp1: Tensor, mask: Tensor | None
) -> Tensor:
    """Return the T + 1 observations of each row, with the true last one of each valid step.

    Args:
        observation_t: float [B, T, ...]; in padding of any value.
        observation_tp1: float [B, T, ...], zeros in padding; differs from ``observation_t`` of
            the next step only where padding or a reset follows.
        mask: bool [B, T], the valid steps; None if all are.

    Returns:
        float [B, T + 1, ...], zeros in padding; where a reset follows inside the row, the
        observation after it.
    """
    first, inner = observation_t[:, :1], observation_t[:, 1:]
    if mask is not None:
        first = keep_where(mask[:, :1], first)
        valid = mask[:, 1:].reshape(*mask[:, 1:].shape, *[1] * (observation_t.dim() - 2))
        inner = torch.where(valid, inner, observation_tp1[:, :-1])
    return torch.cat([first, inner, observation_tp1[:, -1:]], 1)


def keep_where(valid: Tensor, values: Tensor) -> Tensor:
    """Return ``values`` with zeros where ``valid`` is False; NaN does not pass, either.

    Args:
        valid: bool, the leading dimensions of ``values``.
        values: any dtype, ``[*valid.shape, ...]``.
    """
    valid = valid.reshape(valid.shape + (1,) * (values.dim() - valid.dim()))
    return torch.where(valid, values, values.new_zeros(()))


def one_hot(action: Tensor, like: Tensor) -> Tensor:
    """Return actions as one-hot vectors.

    ``torch.nn.functional.one_hot`` checks the range of the actions first, and a GPU would have to
    wait for that check.

    Args:
        action: int64 [..].
        like: a tensor [.., A] of the dtype and device wanted.

    Returns:
        [.., A] of the dtype of ``like``.
    """
    zeros = like.new_zeros(*action.shape, like.shape[-1])
    return zeros.scatter(-1, action.unsqueeze(-1), 1)  # not in place, for ``vmap`` over actions


def last_actions(action_t: Tensor, first: Tensor, is_init: Tensor) -> Tensor:
    """Return the action of each agent just before each of a row's T + 1 observations.

    Args:
        action_t: int64 [B, T, N], the actions of the row's steps.
        first: float [B, N, A], the one-hot action before the row's first observation.
        is_init: bool [B, T + 1, 1], the observations that follow a reset.

    Returns:
        float [B, T + 1, N, A], one-hot; zeros after a reset (DRQN input of QMIX, appendix C).
    """
    taken = one_hot(action_t, first)  # [B, T, N, A]
    return keep_where(~is_init[..., 0], torch.cat([first.unsqueeze(1), taken], 1))


def greedy_action(values: Tensor, action_mask: Tensor | None) -> Tensor:
    """Return the available action of the highest value; action 0 if none is available.

    Args:
        values: float [.., A].
        action_mask: bool, or numbers 0 and 1, [.., A], True = available, or None if all are.

    Returns:
        int64 [..].
    """
    if action_mask is not None:
        values = values.masked_fill(~action_mask.bool(), -torch.inf)
    return values.argmax(-1)


def random_action(like: Tensor, action_mask: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return an action drawn uniformly from the available ones; action 0 if none is available.

    Args:
        like: a float tensor [.., A] that gives the draw its shape and device.
        action_mask: bool [.., A], True = available, or None if all are.
        generator: the random stream, on the device of ``like``.

    Returns:
        int64 [..].
    """
    keys = torch.rand(like.shape, generator=generator, device=like.device)
    return greedy_action(keys, action_mask)


def value_of(values: Tensor, action: Tensor) -> Tensor:
    """Return the value of the action taken.

    Args:
        values: float [.., N, A].
        action: int64 [.., N].

    Returns:
        float [.., N, 1].
    """
    return values.gather(-1, action.unsqueeze(-1))


def batch_index(steps: Tensor) -> Tensor:
    """Return the index that pairs each row of a batch with its own steps.

    ``x[batch_index(steps), steps]`` takes K steps [B, K, ..] of each row from ``x`` [B, T, ..].

    Args:
        steps: int64 [B, K].

    Returns:
        int64 [B, 1].
    """
    return torch.arange(len(steps), device=steps.device).unsqueeze(1)


def lambda_returns(
    reward_t: Tensor,
    value_tp1: Tensor,
    terminated_t: Tensor,
    last_t: Tensor,
    *,
    gamma: float,
    td_lambda: float,
) -> Tensor:
    """Return TD(lambda) targets; ``td_lambda=0`` gives one-step targets.

    ``G_t = r_t + gamma (1 - terminated_t) [(1 - lambda) V_{t+1} + lambda G_{t+1}]``, and with
    ``V_{t+1}`` alone in the bracket where the sequence of valid steps ends at t (Sutton and Barto
    2018, section 12.1), so that neither padding nor another episode reaches a target. On replayed
    data nothing corrects for the policy that acted (Peng's Q(lambda)).

    Args:
        reward_t: float [B, T, M].
        value_tp1: float [B, T, M], the value of the true next observation.
        terminated_t: bool [B, T, 1].
        last_t: bool [B, T, 1], the last valid step of its episode in this row.
        gamma: the discount per step.
        td_lambda: the weight of longer returns, in [0, 1].

    Returns:
        float [B, T, M].
    """
    discount_t = gamma * (~terminated_t).to(reward_t.dtype)  # [B, T, 1]
    one_step_t = reward_t + discount_t * value_tp1  # [B, T, M]
    if td_lambda == 0:
        return one_step_t
    # G_t = own_t + carry_t G_{t+1}. Each round doubles the span of steps that own_t sums.
    carry_t = torch.where(last_t, torch.zeros_like(discount_t), td_lambda * discount_t)
    own_t = one_step_t - carry_t * value_tp1
    span = 1
    while span < own_t.shape[1]:
        joined = own_t[:, :-span] + carry_t[:, :-span] * own_t[:, span:]
        own_t = torch.cat([joined, own_t[:, -span:]], 1)
        carry_t = torch.cat([carry_t[:, :-span] * carry_t[:, span:], carry_t[:, -span:]], 1)
        span *= 2
    return own_t
