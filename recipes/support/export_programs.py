"""Inputs and outputs of an exported policy, and programs that run it without TorchRL and VMAS."""

from pathlib import Path

from torch import Tensor

from qmix_trl.export import PlainPolicy
from qmix_trl.native.networks.layers import NORM_EPS

NEEDED = {
    "pt2": "torch",
    "onnx": "onnxruntime and numpy",
    "safetensors": "safetensors and numpy",
}
# The inputs at an episode's first step in code, by the letters of ``_created``.
ZEROS_IN_TORCH = {
    "observation": "torch.zeros({n}, {o})",
    "last_action": "torch.full(({n},), -1)",
    "agent_id": "torch.arange({n})",
    "action_mask": "torch.ones({n}, {a}, dtype=torch.bool)",
    "hidden": "torch.zeros({n}, {h})",
}
ZEROS_IN_NUMPY = {
    "observation": "np.zeros(({n}, {o}), np.float32)",
    "last_action": "np.full({n}, -1)",
    "agent_id": "np.arange({n})",
    "action_mask": "np.ones(({n}, {a}), bool)",
    "hidden": "np.zeros(({n}, {h}), np.float32)",
}


def described(policy: PlainPolicy) -> str:
    """Return in three lines whom a policy serves, its inputs and its outputs."""
    inputs = policy.inputs(2)  # B is free
    outputs = zip(policy.outputs, policy(**inputs), strict=True)
    whose = "share their parameters"
    if not policy.shares_parameters:
        whose = "have parameters of their own, which agent_id chooses"
    return "\n".join(
        [
            f"one policy for all {policy.n_agents} agents, which {whose}",
            f"inputs: {', '.join(_shown(*x) for x in inputs.items())}",
            f"outputs: {', '.join(_shown(*x) for x in outputs)}",
        ]
    )


def _shown(name: str, value: Tensor) -> str:
    shape = ", ".join(["B", *map(str, value.shape[1:])])
    first = {"last_action": " (first -1)", "hidden": " (first 0)"}.get(name, "")
    return f"{name} {str(value.dtype).removeprefix('torch.')} [{shape}]{first}"


def program(policy: PlainPolicy, path: Path, format: str) -> str:
    """Return a program that takes three steps of a team by a file; its observations are zeros.

    Args:
        policy: as exported.
        path: of the file.
        format: of the file, a key of ``NEEDED``.
    """
    if format == "safetensors":
        return "\n".join(_by_parameters(policy, path))
    return "\n".join(_by_call(policy, path, format))


def _by_call(policy: PlainPolicy, path: Path, format: str) -> list[str]:
    """Return the lines of a program that calls the policy in a file."""
    n, call = policy.n_agents, "policy(**inputs)"
    load = ["import torch", f"policy = torch.export.load({str(path)!r}).module()"]
    if format == "onnx":
        load = ["import numpy as np", "import onnxruntime"]
        load.append(f"policy = onnxruntime.InferenceSession({str(path)!r})")
        call = "policy.run(None, inputs)"
    inputs, create = policy.inputs(n), _created(policy, format)
    others = [name for name in inputs if name != "observation"]
    outputs = 'action, values, inputs["hidden"]' if "hidden" in inputs else "action, values"
    return [
        *load,
        f"inputs = {{  # of all {n} agents, at the first step of an episode",
        *(f'    "{name}": {create[name]},' for name in others),
        "}",
        "for step in range(3):",
        f'    inputs["observation"] = {create["observation"]}  # seen now',
        f"    {outputs} = {call}",
        *(['    inputs["last_action"] = action'] if "last_action" in inputs else []),
        "    print(action.tolist())",
    ]


def _by_parameters(policy: PlainPolicy, path: Path) -> list[str]:
    """Return the lines of a program that computes the layers itself."""
    n, create = policy.n_agents, _created(policy, "safetensors")
    product = "x @ {}.T" if policy.shares_parameters else 'np.einsum("nd,nhd->nh", x, {})'
    weight, bias = 'w[f"{name}.weight{of}"]', 'w[f"{name}.bias{of}"]'
    parts, values, first = ["observation"], 'layer(x, "head")', {}
    if policy.use_last_action:
        parts.append(f"action[:, None] == np.arange({policy.n_actions})")
        first["action"] = create["last_action"]
    if policy.use_agent_id:
        parts.append(f"np.eye({n}, dtype=np.float32)")
    if policy.rnn is not None:
        first["hidden"] = create["hidden"]
    if policy.masked:
        values = f"np.where({create['action_mask']}, {values}, -np.inf)"
    n_below = len(policy.below)
    hidden = (
        'norm(layer(x, f"below.{i}"), f"norms.{i}")' if policy.norms else 'layer(x, f"below.{i}")'
    )
    relu = [f"    for i in range({n_below}): x = np.maximum({hidden}, 0)"]
    return [
        "import numpy as np",
        "from safetensors.numpy import load_file",
        f"w = load_file({str(path)!r})",
        'def layer(x, name, of=""):',
        f"    return {product.format(weight)} + {bias}",
        *(_norm() if policy.norms else []),
        *([f"{', '.join(first)} = {', '.join(first.values())}"] if first else []),
        "for step in range(3):",
        f"    observation = {create['observation']}  # of all {n} agents, seen now",
        f"    x = np.hstack([{', '.join(parts)}])",
        *(relu if n_below else []),
        *(_gru(policy.hidden_dim) if policy.rnn is not None else []),
        f"    action = {values}.argmax(1)",
        "    print(action.tolist())",
    ]


def _norm() -> list[str]:
    """Return the lines of a layer norm."""
    return [
        "def norm(x, name):",
        f"    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + {NORM_EPS})",
        '    return x * w[f"{name}.weight"] + w[f"{name}.bias"]',
    ]


def _gru(width: int) -> list[str]:
    """Return the lines of a GRU cell."""
    candidate = f"np.tanh(of_x[:, {2 * width}:] + reset * of_h[:, {2 * width}:])"
    return [
        '    of_x, of_h = layer(x, "rnn", "_ih"), layer(hidden, "rnn", "_hh")',
        "    reset, update, _ = np.split(1 / (1 + np.exp(-of_x - of_h)), 3, 1)",
        f"    x = hidden = update * hidden + (1 - update) * {candidate}",
    ]


def _created(policy: PlainPolicy, format: str) -> dict[str, str]:
    """Return the code of each input at an episode's first step."""
    sizes = {
        "n": policy.n_agents,
        "o": policy.observation_dim,
        "a": policy.n_actions,
        "h": policy.hidden_dim,
    }
    code = ZEROS_IN_TORCH if format == "pt2" else ZEROS_IN_NUMPY
    return {name: text.format(**sizes) for name, text in code.items()}
