"""The QMIX loss, with target networks of agent and mixer."""

from dataclasses import dataclass, fields

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.objectives import LossModule

from qmix_trl import keys
from qmix_trl.functional import (
    batch_index,
    greedy_action,
    keep_where,
    lambda_returns,
    one_hot,
)
from qmix_trl.keys import next_key
from qmix_trl.mixers.inputs import SUPPLIED, MixerInputs, input_names
from qmix_trl.rows import Rows, read_rows

REDUCTIONS = ("mean", "sum", "none")
PRIORITY_ETA = 0.9  # the weight of the largest error against the mean error: R2D2, section 2.3


class QMixLoss(LossModule):
    """The masked squared TD error of a factored joint value (QMIX, section 4, equation 6).

    For every row of a batch ``[B, T]`` in TorchRL's layout, with Q_tot = mixer(Q_1 .. Q_N, s):

    - the online and the target agent each unroll the row's T + 1 observations once;
    - ``u*_{t+1} = argmax Q_a(tau_{t+1}, .)`` over the available actions, by the online agent
      with ``double_q`` (van Hasselt et al. 2016), by the target agent without;
    - ``V_{t+1} = Q_tot(tau_{t+1}, u*_{t+1}, s_{t+1})`` of the target agent and mixer;
    - ``y_t = c r_t + gamma (1 - terminated_t) [(1 - lambda) V_{t+1} + lambda y_{t+1}]``, with
      V_{t+1} alone in the bracket at an episode's last valid step in the row
      (``functional.lambda_returns``), c the ``reward_scale`` and lambda the ``td_lambda``;
    - ``loss = sum(w m (Q_tot(tau_t, u_t, s_t) - y_t)^2) / sum(m)`` over rows and steps, with m the
      ``mask`` less the ``burn_in`` and w the ``priority_weight``. Without a mixer every Q_a takes
      the place of Q_tot, and the mean is also over agents.

    A truncated step bootstraps from ``("next", observation)`` and ``("next", state)``, also where
    a reset follows inside the row. Padding, NaN included, changes neither loss nor gradient. The
    batch is not written to.

    A batch holds ``observation``, ``action`` and, if the mixer reads it, ``state``; under
    ``"next"`` also observation and state, ``reward`` and ``terminated``. Optional are
    ``action_mask`` (of both steps), ``done`` under ``"next"``, ``mask`` (the valid steps),
    ``is_init``, ``priority_weight`` (one per row), and at a row's first step ``hidden`` and
    ``last_action``. Without the last two a row starts from zeros; without ``is_init`` a row
    begins with an episode, and another episode follows each done. Replay adds ``cut_steps``, K
    steps of each row, its cuts among them: there the true next observation is not the row's next
    one, and the agents take one more step. Without the entry they take it at every observation.

    Args:
        agent: an agent of ``qmix_trl.agents``, or a module with the same ``step`` and ``unroll``.
        mixer: a module that names in ``in_keys`` what it reads among ``mixers.inputs.SUPPLIED``
            and returns Q_tot [B, T, 1], or a TensorDictModule that writes it, such as TorchRL's
            mixers. None learns every agent's value by itself, from its own reward (independent
            Q-learning): the agents' rewards take the place of the team's.
        gamma: the discount per step, in [0, 1].
        double_q: the online agent chooses the next action.
        td_lambda: the weight of longer returns, in [0, 1]; 0 is one-step.
        reward_scale: the factor of rewards before they enter targets.
        reduction: "mean" over the valid steps, "sum", or "none" for errors [B, T, M].
        burn_in: the number of first steps of every row that are unrolled without gradient and
            left out of the loss (R2D2, Kapturowski et al. 2019, section 3).

    Raises:
        ValueError: if an argument is out of its range.
        TypeError: if the mixer has no ``in_keys``.
    """

    @dataclass
    class _AcceptedKeys:
        observation: NestedKey = keys.OBSERVATION
        action: NestedKey = keys.ACTION
        action_mask: NestedKey = keys.ACTION_MASK
        last_action: NestedKey = keys.LAST_ACTION
        hidden: NestedKey = keys.HIDDEN
        action_value: NestedKey = keys.ACTION_VALUE
        chosen_action_value: NestedKey = keys.CHOSEN_ACTION_VALUE
        greedy_action_value: NestedKey = keys.GREEDY_ACTION_VALUE
        state: NestedKey = keys.STATE
        reward: NestedKey = keys.REWARD
        agent_reward: NestedKey = keys.AGENT_REWARD
        terminated: NestedKey = keys.TERMINATED
        done: NestedKey = keys.DONE
        is_init: NestedKey = keys.IS_INIT
        mask: NestedKey = keys.MASK
        cut_steps: NestedKey = keys.CUT_STEPS
        priority_weight: NestedKey = keys.PRIORITY_WEIGHT

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    out_keys = ["loss", "priority", "td_error", "total_value", "target_value"]

    agent: TensorDictModuleBase
    agent_params: TensorDictParams
    target_agent_params: TensorDictParams
    mixer: TensorDictModuleBase | None
    mixer_params: TensorDictParams | None
    target_mixer_params: TensorDictParams | None

    def __init__(
        self,
        agent: TensorDictModuleBase,
        mixer: nn.Module | None,
        *,
        gamma: float,
        double_q: bool = True,
        td_lambda: float = 0.0,
        reward_scale: float = 1.0,
        reduction: str = "mean",
        burn_in: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("gamma", gamma), ("td_lambda", td_lambda)):
            if not 0 <= value <= 1:
                raise ValueError(f"QMixLoss: expected {name} in [0, 1], got {value}")
        if burn_in < 0:
            raise ValueError(f"QMixLoss: expected burn_in of at least 0, got {burn_in}")
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"QMixLoss: expected reduction of {', '.join(REDUCTIONS)}, got {reduction!r}"
            )
        self.gamma = gamma
        self.double_q = double_q
        self.td_lambda = td_lambda
        self.reward_scale = reward_scale
        self.reduction = reduction
        self.burn_in = burn_in
        self.convert_to_functional(agent, "agent", create_target_params=True)
        if mixer is None:
            self.mixer = self.mixer_params = self.target_mixer_params = None
        else:
            self.convert_to_functional(as_module(mixer), "mixer", create_target_params=True)

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that every batch must hold."""
        k = self.tensor_keys
        state = [k.state, next_key(k.state)] if self._needs_state else []
        this_step = [k.observation, next_key(k.observation), k.action, *state]
        return [*this_step, next_key(self._reward_key), next_key(k.terminated)]

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        """Do nothing: targets are computed here and not by one of TorchRL's estimators."""

    @property
    def _mixer_reads(self) -> list[str]:
        """The attributes of ``MixerInputs`` that the mixer reads, in the order of its call."""
        if self.mixer is None:
            return []
        keys_now = self.tensor_keys
        spelt = {
            getattr(keys_now, field.name): SUPPLIED[field.default]
            for field in fields(keys_now)
            if field.default in SUPPLIED
        }
        return input_names(self.mixer.in_keys, spelt)

    @property
    def _needs_state(self) -> bool:
        return "state" in self._mixer_reads

    @property
    def _reward_key(self) -> NestedKey:
        k = self.tensor_keys
        return k.agent_reward if self.mixer is None else k.reward

    @dispatch
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the loss of a batch and detached diagnostics.

        Args:
            tensordict: a batch [B, T], as the class describes it.

        Returns:
            a TensorDict of ``loss`` (a scalar; [B, T, M] with reduction "none"), ``priority``
            [B] (R2D2's, one per row), and over the valid steps the mean absolute ``td_error``
            and the means ``total_value`` and ``target_value``.

        Raises:
            KeyError: if an entry is missing, or the mixer reads one that the loss cannot supply.
            ValueError: if the batch is not two-dimensional, its rewards are of another number
                than the values learned, or ``burn_in`` leaves no step of a row.
        """
        rows = read_rows(
            tensordict,
            self.tensor_keys,
            n_actions=self.agent.n_actions if keys.LAST_ACTION in self.agent.in_keys else None,
            reward=self._reward_key,
            needs_state=self._needs_state,
        )
        value, hidden = self._unroll(self.agent_params, rows)  # [B, T+1, N, A]
        inputs = MixerInputs(
            action_value=value[:, :-1],
            action=rows.action,
            action_mask=rows.action_mask,
            state=rows.state,
            hidden=None if hidden is None else hidden[:, :-1],
            observation=rows.observation[:, :-1],
        )
        total = self._mix(self.mixer_params, inputs)  # [B, T, M]
        self._check(rows, total)
        with torch.no_grad():
            target = self._target(rows, value, hidden)  # [B, T, M]
        trained = rows.mask.clone()  # [B, T]
        trained[:, : self.burn_in] = False
        error = keep_where(trained, total - target)  # [B, T, M]
        loss = error.square()
        if self.tensor_keys.priority_weight in tensordict.keys(True, True):
            weight = tensordict.get(self.tensor_keys.priority_weight)  # [B, ..]
            loss = loss * weight.reshape(len(weight), -1)[:, :1, None]
        return self._report(loss, error.detach(), total.detach(), target, trained)

    def _check(self, rows: Rows, total: Tensor) -> None:
        """Raise if rewards would broadcast, or ``burn_in`` leaves no step to learn from."""
        if rows.reward.shape != total.shape:
            raise ValueError(
                f"QMixLoss: expected ('next', {self._reward_key!r}) with {total.shape[-1]} rewards "
                f"a step, got {rows.reward.shape[-1]}: a mixer learns from the team's reward, "
                "mixer=None from each agent's"
            )
        if self.burn_in >= total.shape[1]:
            raise ValueError(
                f"QMixLoss: expected rows longer than burn_in {self.burn_in}, got {total.shape[1]}"
            )

    def _unroll(self, params: TensorDictParams, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return action values [B, T+1, N, A] and hidden states [B, T+1, N, H]."""
        sequence = (rows.observation, rows.last_action, rows.is_init)
        with params.to_module(self.agent, preserve_module_state=False):
            if self.burn_in == 0:
                return self.agent.unroll(*sequence, rows.hidden)
            with torch.no_grad():
                burnt = self.agent.unroll(*_range_of(sequence, slice(self.burn_in)), rows.hidden)
            hidden = None if burnt[1] is None else burnt[1][:, -1]
            after = _range_of(sequence, slice(self.burn_in, None))
            value, hidden = self.agent.unroll(*after, hidden)
        hidden = None if hidden is None else torch.cat([burnt[1], hidden], 1)
        return torch.cat([burnt[0], value], 1), hidden

    def _mix(self, params: TensorDictParams | None, inputs: MixerInputs) -> Tensor:
        """Return the learned values: Q_tot [B, T, 1], or every Q_a [B, T, N] without a mixer."""
        if self.mixer is None:
            return inputs.chosen_action_value[..., 0]
        read = [getattr(inputs, name) for name in self._mixer_reads]
        if any(entry is None for entry in read):
            raise KeyError("QMixLoss: the mixer reads hidden states, but this agent has none")
        with params.to_module(self.mixer, preserve_module_state=False):
            if type(self.mixer) is TensorDictModule:  # spares the TensorDicts
                return self.mixer.module(*read)
            entries = dict(zip(self.mixer.in_keys, read, strict=True))
            return self.mixer(TensorDict(entries, inputs.action.shape[:2])).get(
                self.mixer.out_keys[0]
            )

    def _target(self, rows: Rows, online_value: Tensor, online_hidden: Tensor | None) -> Tensor:
        """Return the targets [B, T, M]."""
        target = self._unroll(self.target_agent_params, rows)
        value_tp1, hidden_tp1 = self._true_next(self.target_agent_params, rows, *target)
        chooser_tp1 = value_tp1  # [B, T, N, A]
        if self.double_q:
            online = (online_value, online_hidden)
            chooser_tp1, _ = self._true_next(self.agent_params, rows, *online)
        inputs = MixerInputs(
            action_value=value_tp1,
            action=greedy_action(chooser_tp1, rows.next_action_mask),  # [B, T, N]
            action_mask=rows.next_action_mask,
            state=rows.next_state,
            hidden=hidden_tp1,
            observation=rows.next_observation,
        )
        return lambda_returns(
            self.reward_scale * rows.reward,
            self._mix(self.target_mixer_params, inputs),
            rows.terminated,
            rows.last,
            gamma=self.gamma,
            td_lambda=self.td_lambda,
        )

    def _true_next(
        self, params: TensorDictParams, rows: Rows, value: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return action values [B, T, N, A] and hidden states at each step's true next observation.

        They are the unroll's at the next step, except at a cut: there the agent takes one more
        step, from its hidden state to the last observation of the truncated episode.
        """
        value_tp1, hidden_tp1 = value[:, 1:], None if hidden is None else hidden[:, 1:]
        steps = rows.cut_steps  # [B, K]; K is fixed, so that no shape depends on the data
        if steps.shape[1] == 0:
            return value_tp1, hidden_tp1
        row = batch_index(steps)  # [B, 1]
        is_cut = rows.is_cut[row, steps][..., None, None]  # [B, K, 1, 1]
        observation = rows.next_observation[row, steps]  # [B, K, N, O]
        taken = one_hot(rows.action[row, steps], value)  # [B, K, N, A]
        before = None if hidden is None else hidden[row, steps]  # [B, K, N, H]
        with params.to_module(self.agent, preserve_module_state=False):
            cut_value, cut_hidden = self.agent.step(observation, taken, before)  # [B, K, N, ..]

        def replaced(x_tp1: Tensor, at_cuts: Tensor) -> Tensor:
            return x_tp1.index_put((row, steps), torch.where(is_cut, at_cuts, x_tp1[row, steps]))

        if hidden_tp1 is not None and "hidden" in self._mixer_reads:
            hidden_tp1 = replaced(hidden_tp1, cut_hidden)
        return replaced(value_tp1, cut_value), hidden_tp1

    def _report(
        self, loss: Tensor, error: Tensor, total: Tensor, target: Tensor, trained: Tensor
    ) -> TensorDict:
        """Return the loss's outputs.

        Args:
            loss: the weighted squared errors [B, T, M].
            error: the errors [B, T, M].
            total: the learned values [B, T, M].
            target: the targets [B, T, M].
            trained: the steps that count, bool [B, T].
        """
        n_steps = trained.sum().clamp(min=1)
        n_trained = n_steps * error.shape[-1]
        absolute = error.abs()
        row_steps = trained.sum(1).clamp(min=1) * error.shape[-1]  # [B]
        largest, mean = absolute.amax((1, 2)), absolute.sum((1, 2)) / row_steps
        if self.reduction == "mean":
            loss = loss.sum() / n_trained
        elif self.reduction == "sum":
            loss = loss.sum()
        return TensorDict(
            {
                "loss": loss,
                "priority": PRIORITY_ETA * largest + (1 - PRIORITY_ETA) * mean,
                "td_error": absolute.sum() / n_trained,
                "total_value": keep_where(trained, total).sum() / n_trained,
                "target_value": keep_where(trained, target).sum() / n_trained,
            }
        )


def _range_of(sequence: tuple[Tensor | None, ...], steps: slice) -> list[Tensor | None]:
    """Return a range of steps of tensors [B, T, ..]."""
    return [None if x is None else x[:, steps] for x in sequence]


def as_module(mixer: nn.Module) -> TensorDictModuleBase:
    """Return the mixer as a TensorDictModule that reads its ``in_keys`` and writes Q_tot.

    Raises:
        TypeError: if it is not a TensorDictModule and has no ``in_keys``.
    """
    if isinstance(mixer, TensorDictModuleBase):
        return mixer
    if not hasattr(mixer, "in_keys"):
        raise TypeError(
            f"QMixLoss: expected a mixer that names what it reads, got {type(mixer).__name__} "
            "without in_keys; wrap it: TensorDictModule(mixer, in_keys=[...], out_keys=[...])"
        )
    return TensorDictModule(mixer, in_keys=list(mixer.in_keys), out_keys=[keys.TOTAL_VALUE])
