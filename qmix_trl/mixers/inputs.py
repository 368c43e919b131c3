"""The entries that a mixer reads: values of the agents, and entries of the batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule, TensorDictModuleBase
from torch import Tensor, nn

from qmix_trl import keys
from qmix_trl.functional import greedy_action, value_of

# key: the attribute of MixerInputs that holds it
SUPPLIED: dict[NestedKey, str] = {
    keys.CHOSEN_ACTION_VALUE: "chosen_action_value",
    keys.GREEDY_ACTION_VALUE: "greedy_action_value",
    keys.ACTION_VALUE: "action_value",
    keys.ACTION: "action",
    keys.ACTION_MASK: "available",
    keys.STATE: "state",
    keys.HIDDEN: "hidden",
    keys.OBSERVATION: "observation",
}


@dataclass(frozen=True, kw_only=True)
class MixerInputs:
    """The inputs of a mixer for T steps of B rows; all inputs belong to the same step.

    For the joint value Q_tot(tau_t, u_t) they are those of step t and of the online agent; for
    the value of a target, of step t + 1 and of the target agent, with the action u*_{t+1}.

    Attributes:
        action_value: float [B, T, N, A], Q_a of every action.
        action: int64 [B, T, N], the joint action.
        action_mask: bool [B, T, N, A], True = available; None if all are.
        state: float [B, T, *S]; None if the mixer does not read it.
        hidden: float [B, T, N, H], after the observation; None for agents without.
        observation: float [B, T, N, O].
        others: more entries of the batch [B, T, ..], by key.
    """

    action_value: Tensor
    action: Tensor
    action_mask: Tensor | None
    state: Tensor | None
    hidden: Tensor | None
    observation: Tensor
    others: Mapping[NestedKey, Tensor]

    @property
    def chosen_action_value(self) -> Tensor:
        """The utilities of the joint action: float [B, T, N, 1]."""
        return value_of(self.action_value, self.action)

    @property
    def greedy_action_value(self) -> Tensor:
        """The utilities of each agent's best available action: float [B, T, N, 1]."""
        return value_of(self.action_value, greedy_action(self.action_value, self.action_mask))

    @property
    def available(self) -> Tensor:
        """The available actions, all of them without a mask: bool [B, T, N, A]."""
        if self.action_mask is None:
            return torch.ones_like(self.action_value, dtype=torch.bool)
        return self.action_mask

    def read(self, in_keys: Sequence[NestedKey], spelt: Mapping[NestedKey, str]) -> list[Tensor]:
        """Return the entries that a mixer reads, in the order of its call.

        Args:
            in_keys: of the mixer.
            spelt: as in ``input_names``.

        Raises:
            KeyError: if hidden states are read, and there are none.
        """
        entries = [
            self.others[key] if name is None else getattr(self, name)
            for key, name in input_names(in_keys, spelt)
        ]
        if any(entry is None for entry in entries):
            raise KeyError("QMixLoss: the mixer reads hidden states, but this agent has none")
        return entries


def input_names(
    in_keys: Sequence[NestedKey], spelt: Mapping[NestedKey, str]
) -> list[tuple[NestedKey, str | None]]:
    """Return each of a mixer's ``in_keys`` with its attribute of ``MixerInputs``.

    An entry that is not supplied has None: it is one of the ``others``, read from the batch.

    Args:
        in_keys: of the mixer.
        spelt: other spellings of the keys in ``SUPPLIED``, by ``set_keys`` of the loss.
    """
    known = {**SUPPLIED, **spelt}
    return [(key, known.get(key)) for key in in_keys]


def as_module(mixer: nn.Module) -> TensorDictModuleBase:
    """Return the mixer as a TensorDictModule that reads its ``in_keys`` and writes Q_tot.

    Raises:
        TypeError: if it is not a TensorDictModule and has no ``in_keys``, or it writes several
            entries and none of them is Q_tot by its name.
    """
    if isinstance(mixer, TensorDictModuleBase):
        if len(mixer.out_keys) != 1 and keys.TOTAL_VALUE not in mixer.out_keys:
            raise TypeError(
                f"QMixLoss: expected a mixer that writes Q_tot as {keys.TOTAL_VALUE!r}, or one "
                f"entry alone, got {mixer.out_keys}; name it so, or call mixer.select_out_keys"
            )
        return mixer
    if not hasattr(mixer, "in_keys"):
        raise TypeError(
            f"QMixLoss: expected a mixer that names what it reads, got {type(mixer).__name__} "
            "without in_keys; wrap it: TensorDictModule(mixer, in_keys=[...], out_keys=[...])"
        )
    return TensorDictModule(mixer, in_keys=list(mixer.in_keys), out_keys=[keys.TOTAL_VALUE])


def total_key(mixer: TensorDictModuleBase) -> NestedKey:
    """Return the entry that holds Q_tot among those that a mixer writes."""
    return keys.TOTAL_VALUE if keys.TOTAL_VALUE in mixer.out_keys else mixer.out_keys[0]
