"""Parts of agents: input, memory, and layers whose weights agents share or own."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor, nn
from torchrl.data import Composite
from torchrl.envs import TensorDictPrimer

from qmix_trl.chosen import named

RESET = "_reset"  # TorchRL's entry for the environments that a call of ``reset`` resets


def dispatched(forward: Callable) -> Callable:
    """Return a module's ``forward`` that also takes its ``in_keys`` as tensors, for export too.

    The decorator is tensordict's ``dispatch``. ``torch.export`` binds the arguments of a call to
    the signature, so the signature must not be that of ``forward(tensordict)``.
    """
    wrapper = dispatch(auto_batch_size=False)(forward)
    for name in ("__wrapped__", "__signature__"):
        vars(wrapper).pop(name, None)  # it takes any arguments
    return wrapper


class AgentLayers(NamedTuple):
    """The layers of an agent network, for kernels that compute it without torch.

    Attributes:
        below: linear layers, each followed by a ReLU, from the input on.
        rnn: a GRU cell after these; None for none.
        head: the linear layer to the action values.
        norms: a layer norm for each layer of ``below``, before its ReLU; empty for none.
    """

    below: Sequence[nn.Module]
    rnn: nn.Module | None
    head: nn.Module
    norms: Sequence[nn.Module] = ()


class AgentInput(nn.Module):
    """The input of an agent network: observation, last action and agent id side by side.

    Last action and agent id are one-hot, and optional.

    Args:
        n_agents: N.
        observation_dim: O.
        n_actions: A.
        use_last_action: append the one-hot last action.
        use_agent_id: append the one-hot agent id.

    Attributes:
        dim: the size of one agent's input.

    Raises:
        ValueError: if a size is below 1.
    """

    def __init__(
        self,
        n_agents: int,
        observation_dim: int,
        n_actions: int,
        *,
        use_last_action: bool,
        use_agent_id: bool,
    ) -> None:
        super().__init__()
        if min(n_agents, observation_dim, n_actions) < 1:
            raise ValueError(
                "expected n_agents, observation_dim and n_actions of at least 1, got "
                f"{n_agents}, {observation_dim} and {n_actions}"
            )
        self.use_last_action = use_last_action
        self.use_agent_id = use_agent_id
        self.n_agents = n_agents
        self.observation_dim = observation_dim
        self.dim = observation_dim + use_last_action * n_actions + use_agent_id * n_agents

    def forward(self, observation: Tensor, last_action: Tensor | None) -> Tensor:
        """Return the inputs of all agents.

        Args:
            observation: float [*B, N, O].
            last_action: float [*B, N, A], one-hot; not used without ``use_last_action``.

        Returns:
            float [*B, N, dim].

        Raises:
            ValueError: if the observations are of another team.
        """
        n_agents, size = observation.shape[-2:]
        if size != self.observation_dim or (self.use_agent_id and n_agents != self.n_agents):
            raise ValueError(
                f"the agent: expected observations [.., {self.n_agents}, {self.observation_dim}], "
                f"got {list(observation.shape)}; make the environment as that of its training, or "
                "an agent by env_dims(env)"
            )
        parts = [observation]
        if self.use_last_action:
            parts.append(last_action)
        if self.use_agent_id:
            identity = torch.eye(self.n_agents, device=observation.device, dtype=observation.dtype)
            parts.append(identity.expand(*observation.shape[:-1], -1))
        return torch.cat(parts, -1)


class LayerPerAgent(nn.Module):
    """The parameters of one layer for each agent, stacked under the layer's names: ``[N, ..]``.

    Args:
        make_layer: returns a layer with new random parameters at each call.
        n_agents: N.
    """

    def __init__(self, make_layer: Callable[[], nn.Module], n_agents: int) -> None:
        super().__init__()
        self.make_layer = make_layer
        self.n_agents = n_agents
        make_layer()  # drawn and discarded, so that seeds give the weights of recorded runs
        for name, drawn in self._draw().items():
            self.register_parameter(name, nn.Parameter(drawn))

    def _draw(self) -> dict[str, Tensor]:
        """Return new parameters [N, ..] by name, in the scale of one agent's layer."""
        layers = [dict(self.make_layer().named_parameters()) for _ in range(self.n_agents)]
        return {name: torch.stack([x[name].detach() for x in layers]) for name in layers[0]}

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all parameters again."""
        for name, drawn in self._draw().items():
            getattr(self, name).copy_(drawn)  # a loss sets plain tensors


def agent_repr(agent: nn.Module, head: nn.Module, **hidden: int | tuple[int, ...]) -> str:
    """Return an agent in one line, by the arguments that make it.

    Args:
        agent: with ``inputs`` and ``n_actions``.
        head: its last layer.
        **hidden: the arguments of its hidden layers.
    """
    inputs = agent.inputs
    arguments = {
        "n_agents": inputs.n_agents,
        "observation_dim": inputs.observation_dim,
        "n_actions": agent.n_actions,
        **hidden,
        "share_parameters": not isinstance(head, LayerPerAgent),
        "use_last_action": inputs.use_last_action,
        "use_agent_id": inputs.use_agent_id,
    }
    return f"{type(agent).__name__}({named(arguments)})"


def per_agent(make_layer: Callable[[], nn.Module], n_copies: int | None) -> nn.Module:
    """Return a layer that agents share, or one with the parameters of N layers stacked.

    Args:
        make_layer: returns a layer with new random parameters at each call.
        n_copies: None for one set of weights that agents share, else N: a parameter of shape
            ``[..]`` then has shape ``[N, ..]`` under the same name, drawn for each agent.
    """
    return make_layer() if n_copies is None else LayerPerAgent(make_layer, n_copies)


def norm_of(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a layer norm, as ``dense.linear`` takes them."""
    return layer.weight, layer.bias


def memory_primer(memory_spec: Composite) -> TensorDictPrimer:
    """Return the transform that carries an agent's memory, zero after a reset of the environment.

    Args:
        memory_spec: of the memory of one environment.
    """
    # Named, as TorchRL infers no key where agents have resets of their own.
    return TensorDictPrimer(memory_spec.clone(), expand_specs=True, reset_key=RESET)


def carried(tensordict: TensorDictBase, key: NestedKey) -> Tensor:
    """Return an entry of an agent's memory, or the flag of its reset.

    Raises:
        KeyError: if the environment does not carry it.
    """
    value = tensordict.get(key, None)
    if value is None:
        raise KeyError(
            f"expected the agent's memory {key!r}, got {list(tensordict.keys(True, True))}; act in "
            "with_memory(env, agent), over an environment with TorchRL's InitTracker()"
        )
    return value


def check_agent(agent: nn.Module, where: str, *names: str) -> None:
    """Refuse a module that lacks attributes of an agent, such as a network of TorchRL.

    Args:
        agent: the module.
        where: the name of the function that needs an agent.
        *names: the attributes that it needs.

    Raises:
        TypeError: if one is missing.
    """
    missing = [name for name in names if not hasattr(agent, name)]
    if missing:
        raise TypeError(
            f"{where}: expected an agent with {', '.join(names)}, got a {type(agent).__name__} "
            f"without {', '.join(missing)}; write an agent around it ('Add an agent' in "
            "qmix_trl/README.md); to act, TensorDictSequential(module, head) serves, too"
        )
