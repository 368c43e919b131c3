"""The weights of a run: the state dicts of its agent and mixer, with the sizes of the team."""

import io
import os
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from qmix_trl.checkpoint.files import flush_folder, write_file
from qmix_trl.config.run_files import WEIGHTS
from qmix_trl.envs.contract import EnvDims
from qmix_trl.errors import CheckpointError, ConfigError, DivergedError, SaveError, one_line
from qmix_trl.loss import QMixLoss


@dataclass(frozen=True, kw_only=True)
class AboutWeights:
    """The entries that stand beside the weights in a file.

    Attributes:
        dims: the sizes from which agent and mixer were built; None if the file lacks them.
        greedy_return: the mean return of greedy episodes; None if it was not measured.
    """

    dims: EnvDims | None = None
    greedy_return: float | None = None


def save_weights(
    folder: str | Path,
    agent: TensorDictModuleBase,
    mixer: nn.Module | None,
    *,
    weights: str = "last",
    dims: EnvDims | None = None,
    greedy_return: float | None = None,
) -> None:
    """Write the weights of agent and mixer into a run's folder.

    An interrupted write leaves the weights that were there before.

    Args:
        folder: of the run.
        agent: of the run.
        mixer: of the run; None if it has none.
        weights: the file, "last" (``weights.pt``) or "best" (``best_weights.pt``).
        dims: the sizes from which both were built, for ``load_agent``.
        greedy_return: the mean return of greedy episodes with these weights.

    Raises:
        DivergedError: if a weight is not finite; the file stays as it was.
        SaveError: if the file cannot be written, as on a full disk; it stays as it was.
        ValueError: if ``weights`` is none of these.
    """
    path = weights_path(folder, weights)
    about: dict[str, Any] = {} if greedy_return is None else {"greedy_return": float(greedy_return)}
    if dims is not None:
        about["dims"] = {**asdict(dims), "state_shape": list(dims.state_shape)}
    state = {"agent": agent.state_dict(), "mixer": {} if mixer is None else mixer.state_dict()}
    if about:
        state["about"] = about
    for name in _not_finite(state):
        raise DivergedError(f"{path}: not written: {name} is no longer finite")
    content = io.BytesIO()
    torch.save(state, content)
    part = path.with_name(f"{path.name}.part")
    try:
        part.unlink(missing_ok=True)  # of an interrupted write
        write_file(part, [content.getbuffer()])
        part.replace(path)
        flush_folder(path.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise SaveError(f"{path}: cannot be written: {error.strerror or error}") from error


def load_weights(
    folder: str | Path,
    agent: TensorDictModuleBase,
    mixer: nn.Module | None = None,
    *,
    weights: str = "last",
    loss: QMixLoss | None = None,
) -> None:
    """Load the weights of a run into an agent of the same sizes, and into a mixer if given.

    Args:
        folder: of the run.
        agent: gets the weights.
        mixer: gets its weights; None loads the agent's alone.
        weights: "last", or "best": those of the highest greedy return.
        loss: of agent and mixer; its targets become copies of them. Without it the targets of a
            loss made before stay as they are.

    Raises:
        ConfigError: if it is no folder or has no file of weights, or the file does not fit.
        CheckpointError: if the file is damaged, or is no file of ``save_weights``.
        ValueError: if ``weights`` is neither.
    """
    if Path(folder).is_file():
        raise ConfigError(f"expected a run's folder, such as {Path(folder).parent}, got {folder}")
    path = weights_path(folder, weights)
    state = _read(path)
    for name in _not_finite(state):
        raise CheckpointError(f"{path}: {name} is not finite; the run has diverged")
    try:
        agent.load_state_dict(state["agent"])
        if mixer is not None:
            mixer.load_state_dict(state["mixer"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: does not fit: {one_line(error)}") from error
    if loss is not None:
        loss.copy_to_targets()


def about_weights(folder: str | Path, weights: str = "last") -> AboutWeights:
    """Return the sizes of the team and the greedy return that stand beside a run's weights.

    Args:
        folder: of the run.
        weights: "last" or "best".

    Raises:
        ConfigError: if there is no such file.
        CheckpointError: if it is damaged, or is no file of ``save_weights``.
        ValueError: if ``weights`` is neither.
    """
    path = weights_path(folder, weights)
    about = _read(path).get("about", {})
    try:
        dims, greedy_return = about.get("dims"), about.get("greedy_return")
        return AboutWeights(
            dims=None if dims is None else _checked_dims(**dims),
            greedy_return=None if greedy_return is None else float(greedy_return),
        )
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no file of save_weights ({error})") from error


def weights_path(folder: str | Path, weights: str) -> Path:
    """Return the path of a run's file of weights.

    Raises:
        ValueError: if ``weights`` is neither "last" nor "best".
    """
    if weights not in WEIGHTS:
        raise ValueError(f"expected weights of {', '.join(WEIGHTS)}, got {weights!r}")
    return Path(folder) / WEIGHTS[weights]


def _checked_dims(
    *, n_agents: Any, observation_dim: Any, n_actions: Any, state_shape: Any
) -> EnvDims:
    """Return sizes from a file.

    Raises:
        TypeError: if the shape of the state is no sequence.
        ValueError: if a size is no positive integer.
    """
    for size in (n_agents, observation_dim, n_actions, *state_shape):
        if type(size) is not int or size < 1:
            raise ValueError(f"a size of {size!r}")
    return EnvDims(
        n_agents=n_agents,
        observation_dim=observation_dim,
        n_actions=n_actions,
        state_shape=torch.Size(state_shape),
    )


def _read(path: Path) -> dict[str, Any]:
    """Return the state dicts of agent and mixer.

    Raises:
        ConfigError: if there is no file.
        CheckpointError: if it is damaged, or is no file of ``save_weights``.
    """
    try:
        content = _content(path)
        _check_size(content)
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is none; {_why_none(path)}") from None
    # A damaged file can make torch raise any exception, even a KeyError.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) else type(error).__name__
        raise CheckpointError(f"{path}: damaged, or no file of save_weights ({reason})") from error
    if not _are_weights(state, len(content)):
        raise CheckpointError(f"{path}: damaged, or no file of save_weights (no state dicts)")
    return state


def _why_none(path: Path) -> str:
    if path.name == WEIGHTS["best"] and path.with_name(WEIGHTS["last"]).is_file():
        return "the run was made before best weights were kept: take its last weights"
    return "was the run interrupted?"


def _are_weights(state: Any, most_bytes: int) -> bool:
    """Return whether an object is state dicts by name, of dense tensors that a file can hold."""
    if not isinstance(state, dict) or not all(isinstance(x, Mapping) for x in state.values()):
        return False
    tensors = [x for weights in state.values() for x in weights.values() if isinstance(x, Tensor)]
    return all(
        x.layout == torch.strided
        and not x.is_quantized
        and not x.is_meta
        and x.nbytes <= most_bytes
        for x in tensors
    )


def _content(path: Path) -> bytes:
    """Return the bytes of a file.

    Raises:
        OSError: if it cannot be read, or is no file: a device and a pipe may never end.
    """
    place = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe would wait for its writer
    with os.fdopen(place, "rb") as file:
        found = os.fstat(place)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(0, "it is no file")
        return file.read(found.st_size)


def _check_size(content: bytes) -> None:
    """Refuse an archive that is larger than its file, before anything of it is unpacked.

    Raises:
        ValueError: if it is, as a compressed one may be.
        BadZipFile: if it is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    if not is_stored or sum(entry.file_size for entry in entries) > len(content):
        raise ValueError("compressed")


def _not_finite(state: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield the names of weights that hold NaN or infinity."""
    for part, weights in state.items():
        for name, value in weights.items():
            if isinstance(value, Tensor) and not value.isfinite().all():
                yield f"{part}.{name}"
