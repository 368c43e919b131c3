"""The QMIX loss, with target networks of agent and mixer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, NoReturn

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase, TensorDictParams
from tensordict.nn import TensorDictModule, TensorDictModuleBase, dispatch
from torch import Tensor, nn
from torchrl.objectives import LossModule

from qmix_trl import keys
from qmix_trl.agents.layers import check_agent
from qmix_trl.chosen import named
from qmix_trl.functional import greedy_action, keep_where, lambda_returns
from qmix_trl.keys import next_key
from qmix_trl.loss_outputs import loss_outputs
from qmix_trl.mixers.inputs import SUPPLIED, MixerInputs, as_module, input_names, total_key
from qmix_trl.parameter_places import ParameterPlaces
from qmix_trl.rows import RowKeys, Rows, read_rows, required
from qmix_trl.unroll import at_true_next, unrolled
from qmix_trl.value_bound import TargetBound
from qmix_trl.weighting import Weighting, central_weights, optimistic_weights

CHOICES = {  # attribute: its values
    "reduction": ("mean", "sum", "none"),
    "write_priority": ("steps", "rows", None),
    "use_prioritized_weights": ("auto", True, False),
}
NETWORKS = ("agent", "mixer", "central_agent", "central_mixer")  # the last two of Weighted QMIX
OF_AGENTS = ("in_keys", "n_actions", "step", "unroll")  # the attributes that the loss uses


class QMixLoss(LossModule):
    """The masked squared TD error of a factored joint value (QMIX, section 4, equation 6).

    For every row of a batch ``[B, T]`` in TorchRL's layout, with Q_tot = mixer(Q_1 .. Q_N, s):

    - the online and the target agent each unroll the row's T + 1 observations once;
    - ``u*_{t+1} = argmax Q_a(tau_{t+1}, .)`` over the available actions, by the online agent
      with ``double_q`` (van Hasselt et al. 2016), by the target agent without;
    - ``V_{t+1} = Q_tot(tau_{t+1}, u*_{t+1}, s_{t+1})`` of the target agent and mixer, with
      ``bounded_targets`` clamped to ``[r_min, r_max] / (1 - gamma)``: r_min and r_max are the
      extremes of ``c r_t`` in all batches so far, and of the zeros behind terminations;
    - ``y_t = c r_t + gamma (1 - terminated_t) [(1 - lambda) V_{t+1} + lambda y_{t+1}]``, with
      V_{t+1} alone in the bracket at an episode's last valid step in the row
      (``functional.lambda_returns``), c the ``reward_scale`` and lambda the ``td_lambda``;
    - ``loss = sum(w m (Q_tot(tau_t, u_t, s_t) - y_t)^2) / sum(m)`` over rows and steps, with m the
      ``mask`` less the ``burn_in`` and w the ``priority_weight``. Without a mixer every Q_a takes
      the place of Q_tot, and the mean is also over agents.

    With a ``weighting`` it is the loss of Weighted QMIX (Rashid et al. 2020, arXiv 2006.10800). A
    central value Q*, of another agent and an unrestricted mixer, is learned beside Q_tot:
    ``V_{t+1} = Q*(tau_{t+1}, u*_{t+1}, s_{t+1})`` of its target networks, and
    ``loss = sum(w m (a (Q_tot - y_t)^2 + (Q* - y_t)^2)) / sum(m)``, with a 1 for joint actions that
    may be the best ones and ``alpha`` for the others (``weighting.central_weights``,
    ``optimistic_weights``). The central agent starts each row from a hidden state of zeros.

    A truncated step bootstraps from ``("next", observation)`` and ``("next", state)``, also where
    a reset follows inside the row. Padding, NaN included, changes neither loss nor gradient. The
    batch is not written to, but for ``write_priority``.

    A batch holds ``observation``, ``action`` and, if the mixer reads it, ``state``; under
    ``"next"`` also observation and state, ``reward`` and ``terminated``. Optional are
    ``action_mask`` (of both steps), ``done`` under ``"next"``, ``mask`` (the valid steps),
    ``is_init``, ``priority_weight`` (of rows or steps), and at a row's first step ``hidden`` and
    ``last_action``. A row starts from these two, or from zeros where they are missing, even if
    ``is_init`` marks its first step. Without ``is_init`` every row begins with an episode, and a
    new one follows each done. ``cut_steps``, which replay adds, lists K steps of the row that
    include all its cuts. At a cut the true next observation is not the row's next one, so the
    agents take one more step. Without the entry they take it at every step. ``in_keys`` lists all
    of these.

    The steps of a row follow one another: of ``MultiSyncCollector`` take ``cat_results=0``, as -1
    joins steps of several environments in one row.

    Of TorchRL's attributes, ``loss_mask_key`` chooses the masks ("auto": ``mask`` and
    "shifted_valid", where the batch holds them) and ``use_prioritized_weights`` says whether
    weights are read ("auto": where the batch holds them). There is no value estimator: ``gamma``
    and ``td_lambda`` take its place.

    Args:
        agent: an agent of ``qmix_trl.agents``, or a module with the same ``step`` and ``unroll``.
        mixer: a module that names in ``in_keys`` what it reads and returns Q_tot [B, T, 1], or a
            TensorDictModule that writes it, such as TorchRL's mixers. The loss supplies the
            entries of ``mixers.inputs.SUPPLIED``, and reads all others from the batch, of this
            step and under "next". None learns every agent's value by itself, from its own reward
            (independent Q-learning): the agents' rewards take the place of the team's.
        gamma: the discount per step, in [0, 1].
        double_q: the online agent chooses the next action.
        td_lambda: the weight of longer returns, in [0, 1]; 0 is one-step.
        reward_scale: the factor of rewards before they enter targets.
        reduction: "mean" over the valid steps after ``burn_in``, "sum", or "none" for the weighted
            squared errors [B, T, M].
        burn_in: the number of first steps of every row that are unrolled without gradient and
            left out of the loss (R2D2, Kapturowski et al. 2019, section 3).
        bounded_targets: keep V_{t+1} within the values that rewards allow, so that overestimated
            values cannot feed on themselves. The extremes of rewards are part of the state.
        weighting: of Weighted QMIX, with its central agent and mixer; None for none.
        write_priority: the priorities that are written to the batch as ``td_error`` [B, T, 1], for
            ``update_tensordict_priority`` of TorchRL's replay. "steps": the absolute error of each
            step, the mean over agents without a mixer; "rows": the row's ``priority`` at each of
            its steps; None: none.

    Raises:
        ValueError: if an argument is out of its range, or a ``weighting`` comes without a mixer or
            double-Q.
        TypeError: if ``agent`` is no agent, or the mixer has no ``in_keys``.
    """

    @dataclass
    class _AcceptedKeys(RowKeys):
        action_value: NestedKey = keys.ACTION_VALUE
        chosen_action_value: NestedKey = keys.CHOSEN_ACTION_VALUE
        greedy_action_value: NestedKey = keys.GREEDY_ACTION_VALUE
        priority_weight: NestedKey = keys.PRIORITY_WEIGHT
        priority: NestedKey = keys.TD_ERROR

    default_keys = _AcceptedKeys
    tensor_keys: _AcceptedKeys
    out_keys = ["loss", "priority", "td_error", "total_value", "target_value", "n_values"]

    agent: TensorDictModuleBase
    agent_params: TensorDictParams
    target_agent_params: TensorDictParams
    mixer: TensorDictModuleBase | None
    mixer_params: TensorDictParams | None
    target_mixer_params: TensorDictParams | None
    central_agent: TensorDictModuleBase | None
    central_agent_params: TensorDictParams | None
    target_central_agent_params: TensorDictParams | None
    central_mixer: TensorDictModuleBase | None
    central_mixer_params: TensorDictParams | None
    target_central_mixer_params: TensorDictParams | None

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
        bounded_targets: bool = False,
        weighting: Weighting | None = None,
        write_priority: str | None = None,
    ) -> None:
        super().__init__()
        if all(hasattr(mixer, name) for name in OF_AGENTS):
            raise TypeError(
                "QMixLoss: expected the agent and then the mixer, got "
                f"{type(agent).__name__} and {type(mixer).__name__}; swap them"
            )
        check_agent(agent, "QMixLoss", *OF_AGENTS)
        for name, value in (("gamma", gamma), ("td_lambda", td_lambda)):
            if not 0 <= value <= 1:
                raise ValueError(f"QMixLoss: expected {name} in [0, 1], got {value}")
        if burn_in < 0:
            raise ValueError(f"QMixLoss: expected burn_in of at least 0, got {burn_in}")
        if bounded_targets and gamma == 1:
            raise ValueError("QMixLoss: expected gamma below 1 with bounded_targets, got 1")
        self.gamma = gamma
        self.double_q = double_q
        self.td_lambda = td_lambda
        self.reward_scale = reward_scale
        self.reduction = reduction
        self.burn_in = burn_in
        self.write_priority = write_priority
        self.weighting = None if weighting is None else weighting.kind
        self._set_networks(agent, mixer, weighting)
        first = next(self.parameters())
        self.bound = TargetBound(first.device, first.dtype) if bounded_targets else None

    def _set_networks(
        self,
        agent: TensorDictModuleBase,
        mixer: nn.Module | None,
        weighting: Weighting | None,
    ) -> None:
        """Set agents and mixers, with their targets; those that are absent are None."""
        self._places: dict[str, ParameterPlaces] = {}
        self._memory_keys: tuple[NestedKey, ...] = ()  # with which the agent's memory was checked
        self._called_with_tensors: set[str] = set()  # mixers that are no TensorDictModules
        networks: list[nn.Module | None] = [agent, mixer, None, None]
        if weighting is not None:
            if mixer is None or not self.double_q:
                raise ValueError("QMixLoss: expected a mixer and double_q with a weighting")
            check_agent(weighting.agent, "QMixLoss", *OF_AGENTS)
            if weighting.agent is agent or weighting.mixer is mixer:
                raise ValueError(
                    "QMixLoss: expected a central agent and mixer of their own, got those of Q_tot"
                )
            networks[2:] = weighting.agent, weighting.mixer
            self.alpha = weighting.alpha
        for name, network in zip(NETWORKS, networks, strict=True):
            if network is None:
                for attribute in (name, f"{name}_params", f"target_{name}_params"):
                    setattr(self, attribute, None)
            else:
                module = as_module(network) if "mixer" in name else network
                if module is not network:
                    self._called_with_tensors.add(name)
                self.convert_to_functional(module, name, create_target_params=True)
                self._places[name] = ParameterPlaces(getattr(self, name))

    def __repr__(self) -> str:
        mixer = self.mixer.module if type(self.mixer) is TensorDictModule else self.mixer
        parts = type(self.agent).__name__, type(mixer).__name__ if self.mixer else "no mixer"
        arguments = {
            "gamma": self.gamma,
            "double_q": self.double_q,
            "td_lambda": self.td_lambda,
            "reward_scale": self.reward_scale,
            "burn_in": self.burn_in,
            "bounded_targets": self.bound is not None,
        }
        if self.weighting is not None:
            arguments |= {"weighting": self.weighting, "alpha": self.alpha}
        return f"{type(self).__name__}({', '.join(parts)}, {named(arguments)})"

    @property
    def in_keys(self) -> list[NestedKey]:
        """The entries that are read: those that every batch must hold, then the optional ones."""
        k = self.tensor_keys
        state = [k.state] if self._needs_state else []
        both = [k.observation, *state, *self._others]
        needed = [
            *both,
            *map(next_key, both),
            k.action,
            *map(next_key, (self._reward_key, k.terminated)),
        ]
        carried = [key for key in (k.hidden, k.last_action) if self._agent_reads(key)]
        optional = [k.action_mask, *map(next_key, (k.action_mask, k.done)), k.is_init, *carried]
        optional += [*self._mask_keys, k.cut_steps, k.priority_weight]
        return list(dict.fromkeys([*needed, *optional]))

    def _forward_value_estimator_keys(self, **kwargs) -> None:
        """Do nothing: targets are computed here and not by one of TorchRL's estimators."""

    def make_value_estimator(self, value_type: Any = None, **hyperparams) -> NoReturn:
        """Refuse: targets are computed here and not by one of TorchRL's estimators.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "QMixLoss computes its own targets: expected no value estimator; set gamma and "
            "td_lambda (0 as TD0, 1 as TD1) when you make the loss"
        )

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "value_estimator":
            self.make_value_estimator(value)
        if name in CHOICES and value not in CHOICES[name]:
            known = ", ".join(map(str, CHOICES[name]))
            raise ValueError(f"QMixLoss: expected {name} of {known}, got {value!r}")
        super().__setattr__(name, value)

    def reset_parameters_recursive(self) -> None:
        """Draw new weights of agent and mixer, and copy them to their targets."""
        super().reset_parameters_recursive()
        self.copy_to_targets()  # some layers, as a GRU's, do not reset weights that are buffers

    def copy_to_targets(self) -> None:
        """Copy agents and mixers to their targets."""
        for name in NETWORKS:
            source = getattr(self, f"{name}_params")
            if source is not None:
                self._modules[f"target_{name}_params"].data.update_(source.data)

    @property
    def _mask_keys(self) -> tuple[NestedKey, ...]:
        """The keys of the flags of valid steps."""
        if self.loss_mask_key == "auto":
            return (self.tensor_keys.mask, keys.SHIFTED_VALID)
        return self._loss_mask_keys()

    @property
    def _mixer_reads(self) -> list[tuple[NestedKey, str | None]]:
        """Each entry that a mixer reads, in the order of its call; see ``input_names``."""
        mixers = [mixer for mixer in (self.mixer, self.central_mixer) if mixer is not None]
        in_keys = dict.fromkeys(key for mixer in mixers for key in mixer.in_keys)
        return input_names(list(in_keys), self._spelt)

    @property
    def _spelt(self) -> dict[NestedKey, str]:
        """The attributes of ``MixerInputs`` by the keys that ``set_keys`` has named."""
        keys_now = self.tensor_keys
        return {
            getattr(keys_now, field.name): SUPPLIED[field.default]
            for field in fields(keys_now)
            if field.default in SUPPLIED
        }

    @property
    def _others(self) -> list[NestedKey]:
        """The entries that the mixer reads from the batch."""
        return [key for key, name in self._mixer_reads if name is None]

    @property
    def _needs_state(self) -> bool:
        return self._supplies("state")

    def _supplies(self, name: str) -> bool:
        """Return whether the mixer reads an attribute of ``MixerInputs``."""
        return name in [read for _, read in self._mixer_reads]

    def _agent_reads(self, key: NestedKey) -> bool:
        """Return whether the agent reads its memory ``key``, under this name or its default one."""
        k = self.tensor_keys
        default = {k.hidden: keys.HIDDEN, k.last_action: keys.LAST_ACTION}[key]
        return not {key, default}.isdisjoint(self.agent.in_keys)

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
            [B] (R2D2's, one per row), and over the valid steps the mean absolute ``td_error``,
            the means ``total_value`` and ``target_value``, and the number ``n_values`` of values
            that these means and the loss are taken over.

        Raises:
            KeyError: if an entry is missing, or the mixer reads hidden states of an agent without.
            ValueError: if the batch is not two-dimensional, an entry has another shape, rewards
                are of another number than the values learned, or ``burn_in`` leaves no step.
        """
        rows = self._read(tensordict)
        value, hidden = self._unroll("agent", rows)  # [B, T+1, N, A]
        total = self._mix("mixer", _inputs_at_t(rows, value, hidden, rows.action))  # [B, T, M]
        self._check(rows, total)
        with torch.no_grad():
            target = self._target(rows, value, hidden)  # [B, T, M]
        trained = rows.mask.clone()  # [B, T]
        trained[:, : self.burn_in] = False
        error = keep_where(trained, total - target)  # [B, T, M]
        loss = error.square()
        if self.weighting is not None:
            loss = self._weighted(rows, value.detach(), target, error, trained)
        weight = self._weights(tensordict)
        if weight is not None:
            loss = loss * keep_where(trained, weight.expand(*trained.shape, 1))
        error = error.detach()
        report = loss_outputs(loss, error, total.detach(), target, trained, self.reduction)
        if self.write_priority is not None:
            priority = error.abs().mean(-1, keepdim=True)  # [B, T, 1]
            if self.write_priority == "rows":
                priority = report.get("priority")[:, None, None].expand_as(priority)
            tensordict.set(self.tensor_keys.priority, priority)
        return report

    def _weighted(
        self, rows: Rows, value: Tensor, target: Tensor, error: Tensor, trained: Tensor
    ) -> Tensor:
        """Return the weighted squared errors of Q_tot plus the squared errors of Q*.

        Args:
            rows: of the batch.
            value: float [B, T+1, N, A], the action values of the agent.
            target: float [B, T, 1].
            error: float [B, T, 1], Q_tot less its target; 0 where nothing is trained.
            trained: bool [B, T].

        Returns:
            float [B, T, 1].
        """
        central = self._unroll("central_agent", rows)
        total = self._mix("central_mixer", _inputs_at_t(rows, *central, rows.action))
        if self.weighting == "optimistic":
            weight = optimistic_weights(error.detach(), self.alpha)
        else:
            greedy = greedy_action(value[:, :-1], rows.action_mask)  # [B, T, N]
            with torch.no_grad():
                best = self._mix("central_mixer", _inputs_at_t(rows, *central, greedy))
            is_greedy = (greedy == rows.action).all(-1, keepdim=True)
            weight = central_weights(is_greedy, target, best, self.alpha)
        return weight * error.square() + keep_where(trained, total - target).square()

    def _read(self, batch: TensorDictBase) -> Rows:
        """Return the rows of a batch.

        Raises:
            KeyError: if an entry is missing.
            ValueError: if the batch is not two-dimensional, an entry has another shape, or
                ``burn_in`` leaves no step to learn from.
        """
        if self._memory_keys != (self.tensor_keys.hidden, self.tensor_keys.last_action):
            self._check_agent_memory()
            self._memory_keys = (self.tensor_keys.hidden, self.tensor_keys.last_action)
        others = self._others
        for key in (*others, *map(next_key, others)):
            if batch.get(key, None) is None:
                supplied = ", ".join(map(repr, SUPPLIED))
                raise KeyError(
                    f"the mixer reads {key!r}: expected one of {supplied}, or an entry of the "
                    "batch, at each step and under 'next'"
                )
        if self.loss_mask_key not in ("auto", None):
            required(batch, self.loss_mask_key, "or take loss_mask_key='auto'")
        reads_last_action = self._agent_reads(self.tensor_keys.last_action)
        rows = read_rows(
            batch,
            self.tensor_keys,
            masks=self._mask_keys,
            n_actions=self.agent.n_actions if reads_last_action else None,
            reward=self._reward_key,
            needs_state=self._needs_state,
            others=others,
        )
        n_steps = rows.mask.shape[1]
        if self.burn_in >= n_steps:
            raise ValueError(
                f"QMixLoss: expected rows longer than burn_in {self.burn_in}, got {n_steps}"
            )
        return rows

    def _weights(self, batch: TensorDictBase) -> Tensor | None:
        """Return the importance weights of rows [B, 1, 1] or steps [B, T, 1]; None for none.

        Raises:
            KeyError: if ``use_prioritized_weights`` is True and the batch has none.
        """
        key, weight = self.tensor_keys.priority_weight, None
        if self.use_prioritized_weights == "auto":
            weight = batch.get(key, None)
        elif self.use_prioritized_weights:
            weight = required(batch, key, "or take use_prioritized_weights='auto'")
        return None if weight is None else weight.reshape(len(weight), -1, 1)

    def _check_agent_memory(self) -> None:
        """Refuse an agent with a memory that is not among the entries that the loss reads.

        Raises:
            ValueError: if there is one: each row would begin without it.
        """
        k = self.tensor_keys
        read = {keys.HIDDEN, keys.LAST_ACTION, k.hidden, k.last_action}
        memory = getattr(self.agent, "memory_spec", {}).keys(True, True)
        unread = [key for key in memory if key not in read]
        if unread:
            raise ValueError(
                f"QMixLoss: expected an agent whose memory is {k.hidden!r} and {k.last_action!r}, "
                f"got {', '.join(map(repr, unread))}; name yours by set_keys(hidden=...), and join "
                "several tensors to one"
            )

    def _check(self, rows: Rows, total: Tensor) -> None:
        """Raise if the mixer returns no Q_tot [B, T, 1], or rewards would broadcast."""
        expected = (*rows.mask.shape, 1)
        if self.mixer is not None and getattr(total, "shape", None) != expected:
            found = list(total.shape) if isinstance(total, Tensor) else type(total).__name__
            raise ValueError(
                f"QMixLoss: expected a mixer that returns Q_tot {list(expected)}, got {found}"
            )
        if rows.reward.shape != total.shape:
            raise ValueError(
                f"QMixLoss: expected ('next', {self._reward_key!r}) with {total.shape[-1]} rewards "
                f"a step, got {rows.reward.shape[-1]}: a mixer learns from the team's reward, "
                "mixer=None from each agent's"
            )

    @contextmanager
    def _network(self, name: str) -> Iterator[Any]:
        """Give a network, None for no mixer; with "target_" before its name it has its targets."""
        own_name = name.removeprefix("target_")
        network = getattr(self, own_name)
        if network is None:
            yield None
            return
        with self._places[own_name].filled(getattr(self, f"{name}_params")):
            yield network

    def _unroll(self, name: str, rows: Rows) -> tuple[Tensor, Tensor | None]:
        """Return action values [B, T+1, N, A] and hidden states [B, T+1, N, H] of an agent."""
        with self._network(name) as agent:
            if "central" in name:
                rows = rows._replace(hidden=None)  # rows hold the hidden states of the acting agent
            return unrolled(agent, rows, self.burn_in)

    def _at_next(
        self, name: str, rows: Rows, value: Tensor, hidden: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Return action values [B, T, N, A] and hidden states at the true next observations."""
        with self._network(name) as agent:
            needed = self._supplies("hidden")
            return at_true_next(agent, rows, value, hidden, with_hidden=needed)

    def _mix(self, name: str, inputs: MixerInputs) -> Tensor:
        """Return the values of a mixer [B, T, 1], or every Q_a [B, T, N] without a mixer."""
        with self._network(name) as mixer:
            if mixer is None:
                return inputs.chosen_action_value[..., 0]
            read = inputs.read(mixer.in_keys, self._spelt)
            if name.removeprefix("target_") in self._called_with_tensors:
                return mixer.module(*read)
            entries = dict(zip(mixer.in_keys, read, strict=True))
            return mixer(TensorDict(entries, inputs.action.shape[:2])).get(total_key(mixer))

    def _target(self, rows: Rows, online_value: Tensor, online_hidden: Tensor | None) -> Tensor:
        """Return the targets [B, T, M]."""
        kind = "" if self.weighting is None else "central_"
        target = self._unroll(f"target_{kind}agent", rows)
        value_tp1, hidden_tp1 = self._at_next(f"target_{kind}agent", rows, *target)
        chooser_tp1 = value_tp1  # [B, T, N, A]
        if self.double_q:
            chooser_tp1, _ = self._at_next("agent", rows, online_value, online_hidden)
        inputs = MixerInputs(
            action_value=value_tp1,
            action=greedy_action(chooser_tp1, rows.next_action_mask),  # [B, T, N]
            action_mask=rows.next_action_mask,
            state=rows.next_state,
            hidden=hidden_tp1,
            observation=rows.next_observation,
            others=rows.next_others,
        )
        next_value = self._mix(f"target_{kind}mixer", inputs)  # [B, T, M]
        reward = self.reward_scale * rows.reward
        if self.bound is not None:
            next_value = self.bound(next_value, reward, rows.terminated, rows.mask, self.gamma)
        return lambda_returns(
            reward,
            next_value,
            rows.terminated,
            rows.last,
            gamma=self.gamma,
            td_lambda=self.td_lambda,
        )


def _inputs_at_t(rows: Rows, value: Tensor, hidden: Tensor | None, action: Tensor) -> MixerInputs:
    """Return a mixer's inputs for the joint action [B, T, N] of each step.

    Args:
        rows: of T steps.
        value: float [B, T+1, N, A], of an agent's unroll.
        hidden: float [B, T+1, N, H], of the same; None for agents without.
        action: int64 [B, T, N].
    """
    return MixerInputs(
        action_value=value[:, :-1],
        action=action,
        action_mask=rows.action_mask,
        state=rows.state,
        hidden=None if hidden is None else hidden[:, :-1],
        observation=rows.observation[:, :-1],
        others=rows.others,
    )
