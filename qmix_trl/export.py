"""Export of a trained policy to a file that runs without this package, TorchRL and VMAS."""

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from qmix_trl.agents import gru
from qmix_trl.agents.layers import check_agent, norm_of
from qmix_trl.config.run_files import EXPORTS
from qmix_trl.dense import linear
from qmix_trl.errors import check_extra
from qmix_trl.functional import greedy_action

# A policy of a file: from the tensors in ``PlainPolicy.inputs``, by name, to its outputs.
FilePolicy = Callable[[Mapping[str, Tensor]], tuple[Tensor, ...]]


class PlainPolicy(nn.Module):
    """The greedy policy of one agent on plain tensors, for B decisions of any agents of the team.

    ``agent_id`` tells the agents apart: by the one-hot input of a shared network, or by choosing
    each agent's own parameters. So one policy serves the whole team.

    Args:
        agent: an agent of ``qmix_trl.agents``, on any device; its layers are copied to the CPU.
        masked: whether actions can be unavailable.

    Raises:
        TypeError: if the class of the agent does not name its layers (``network_layers``).
    """

    def __init__(self, agent: TensorDictModuleBase, *, masked: bool) -> None:
        super().__init__()
        check_agent(agent, "PlainPolicy", "network_layers", "inputs", "n_actions")
        layers = copy.deepcopy(agent.network_layers())
        self.below = nn.ModuleList(layers.below)
        self.norms = nn.ModuleList(layers.norms)
        self.rnn = layers.rnn
        self.head = layers.head
        self.n_agents: int = agent.inputs.n_agents
        self.observation_dim = agent.inputs.observation_dim
        self.n_actions = agent.n_actions
        self.use_last_action = agent.inputs.use_last_action
        self.use_agent_id = agent.inputs.use_agent_id
        self.masked = masked
        self.cpu().requires_grad_(False)

    @property
    def shares_parameters(self) -> bool:
        """Whether agents share one network."""
        return self.head.weight.dim() == 2

    @property
    def hidden_dim(self) -> int:
        """H; 0 without a hidden state."""
        return 0 if self.rnn is None else self.rnn.weight_hh.shape[-1]

    def inputs(self, n_decisions: int) -> dict[str, Tensor]:
        """Return the inputs at an episode's first step, by name: those that the agent needs.

        Args:
            n_decisions: B; the agents take turns.
        """
        weight = self.head.weight
        inputs = {"observation": weight.new_zeros(n_decisions, self.observation_dim)}
        if self.use_last_action:
            inputs["last_action"] = torch.full((n_decisions,), -1)
        if self.use_agent_id or not self.shares_parameters:
            inputs["agent_id"] = torch.arange(n_decisions) % self.n_agents
        if self.masked:
            inputs["action_mask"] = torch.ones(n_decisions, self.n_actions, dtype=torch.bool)
        if self.rnn is not None:
            inputs["hidden"] = weight.new_zeros(n_decisions, self.hidden_dim)
        return inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the outputs."""
        both = ("action", "action_value")
        return both if self.rnn is None else (*both, "next_hidden")

    def forward(
        self,
        observation: Tensor,
        last_action: Tensor | None = None,
        agent_id: Tensor | None = None,
        action_mask: Tensor | None = None,
        hidden: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Return actions, action values and, of a recurrent agent, the next hidden state.

        Args:
            observation: float [B, O].
            last_action: int64 [B], -1 at the first step of an episode.
            agent_id: int64 [B], from 0 on.
            action_mask: bool [B, A], True = available.
            hidden: float [B, H], zeros at the first step of an episode.

        Returns:
            int64 [B], float [B, A] and float [B, H].
        """
        parts = [observation]
        if self.use_last_action:
            parts.append(_one_hot(last_action, self.n_actions, observation.dtype))
        if self.use_agent_id:
            parts.append(_one_hot(agent_id, self.n_agents, observation.dtype))
        own = None if self.shares_parameters else agent_id
        x = torch.cat(parts, -1)
        for i, layer in enumerate(self.below):
            norm = _of_agents(own, *norm_of(self.norms[i])) if self.norms else None
            x = linear(x, *_of_agents(own, layer.weight, layer.bias), relu=True, norm=norm)
        if self.rnn is not None:
            rnn = self.rnn
            gates = linear(x, *_of_agents(own, rnn.weight_ih, rnn.bias_ih))
            x = gru.cell(gates, hidden, *_of_agents(own, rnn.weight_hh, rnn.bias_hh))
        values = linear(x, *_of_agents(own, self.head.weight, self.head.bias))
        decided = greedy_action(values, action_mask), values
        return decided if self.rnn is None else (*decided, x)


def _one_hot(numbers: Tensor, size: int, dtype: torch.dtype) -> Tensor:
    """Return numbers [B] as one-hot vectors [B, size]; -1 gives zeros."""
    return (numbers.unsqueeze(-1) == torch.arange(size)).to(dtype)


def _of_agents(agent_id: Tensor | None, *parameters: Tensor) -> tuple[Tensor, ...]:
    """Return the parameters [B, ..] of the agents that decide; shared ones as they are."""
    return parameters if agent_id is None else tuple(p[agent_id] for p in parameters)


def export_policy(policy: PlainPolicy, path: str | Path, *, format: str) -> None:
    """Write a policy to a file; B is free.

    Args:
        policy: of an agent.
        path: of the file, with the ending that its format wants.
        format: "pt2", a program of ``torch.export``; "onnx"; or "safetensors", the parameters
            alone, under the names of the layers of ``PlainPolicy``.

    Raises:
        ConfigError: if a package of the format is not installed.
        ValueError: if the format is unknown.
        OSError: if the file cannot be written.
    """
    _check_format(format)
    if format == "safetensors":
        from safetensors.torch import save

        Path(path).write_bytes(save(policy.state_dict()))
        return
    inputs = policy.inputs(2)  # torch.export takes 0 and 1 for constants
    batch = torch.export.Dim("batch")
    shapes = {name: {0: batch} for name in inputs}
    if format == "pt2":
        program = torch.export.export(policy, (), kwargs=inputs, dynamic_shapes=shapes)
        torch.export.save(program, path)
        return
    with _quiet():
        torch.onnx.export(
            policy,
            (),
            path,
            kwargs=inputs,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=list(policy.outputs),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def load_policy(policy: PlainPolicy, path: str | Path, *, format: str) -> FilePolicy:
    """Return the policy in a file as a function.

    Args:
        policy: the policy that was exported; its layers get the parameters of safetensors.
        path: of the file.
        format: of the file.

    Raises:
        ConfigError: if a package of the format is not installed.
        ValueError: if the format is unknown.
    """
    _check_format(format)
    if format == "pt2":
        program = torch.export.load(path).module()
        return lambda inputs: program(**inputs)
    if format == "safetensors":
        from safetensors.torch import load_file

        read = copy.deepcopy(policy)
        read.load_state_dict(load_file(path))
        return lambda inputs: read(**inputs)
    import onnxruntime

    session = onnxruntime.InferenceSession(path)

    def run(inputs: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return tuple(map(torch.from_numpy, outputs))

    return run


def _check_format(format: str) -> None:
    """Refuse a format that is unknown, or whose packages are not installed.

    Raises:
        ValueError: if it is unknown.
    """
    if format not in EXPORTS:
        raise ValueError(f"expected a format of {', '.join(EXPORTS)}, got {format!r}")
    for package in EXPORTS[format]:
        check_extra(package, "export", "format")


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the notes of torch's ONNX exporter on packages that it does not need."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
