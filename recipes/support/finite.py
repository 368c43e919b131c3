"""Numbers that are not finite, of the environment or of an update, end a run at once.

A sum tells in one fast pass whether all numbers are finite: it is not, if one of them is not. Only
then each number is looked at, for a sum of finite numbers may be infinite, too.
"""

import math
from pathlib import Path

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torch.nn.utils import get_total_norm

from qmix_trl import Update
from qmix_trl.config.run_files import WEIGHTS
from qmix_trl.errors import DivergedError
from qmix_trl.keys import AGENT_REWARD, MASK, OBSERVATION, REWARD, STATE, TERMINATED, next_key

NOW: tuple[NestedKey, ...] = (OBSERVATION, STATE)
NEXT: tuple[NestedKey, ...] = tuple(map(next_key, (OBSERVATION, STATE)))
REWARDS = (next_key(REWARD), next_key(AGENT_REWARD))


def check_batch(batch: TensorDictBase) -> None:
    """Refuse a collected batch [E, T] with a reward, observation or state that is no number.

    Padding does not count, nor what follows a termination: nothing is learned from them.

    Raises:
        DivergedError: if there is one.
    """
    entries = {
        key: entry
        for key in (*REWARDS, *NOW, *NEXT)
        if (entry := batch.get(key, None)) is not None and entry.is_floating_point()
    }
    if torch.stack([entry.sum() for entry in entries.values()]).isfinite().all():
        return
    valid = batch.get(MASK)  # [E, T]
    goes_on = valid & ~batch.get(next_key(TERMINATED))[..., 0]
    for key, entry in entries.items():
        counts = goes_on if key in NEXT else valid
        wrong = ~entry.isfinite().flatten(2).all(-1) & counts  # [E, T]
        if wrong.any():
            env, step = wrong.nonzero()[0].tolist()
            what = "rewards" if key in REWARDS else "observations or states"
            numbers = entry[env, step].flatten()
            value = numbers[~numbers.isfinite()][0].item()
            raise DivergedError(
                f"the environment's {what} are not numbers: {key} is {value} at step {step} of "
                f"environment {env} in this batch; nothing of it is learned or saved"
            )


def check_update(means: TensorDictBase, update: Update, n_updates: int, folder: Path) -> None:
    """Stop a training that diverges.

    Args:
        means: of the outputs of a batch's updates.
        update: whose weights and optimiser are looked at.
        n_updates: the number of updates until now.
        folder: of the run.

    Raises:
        DivergedError: if the mean loss or gradient norm of the updates is not finite, or a weight
            or a number of the optimiser is not.
    """
    state = [x for of_one in update.optimizer.state.values() for x in of_one.values()]
    tensors = [*update.loss.parameters(), *(x for x in state if isinstance(x, Tensor) and x.dim())]
    largest = get_total_norm([x.detach() for x in tensors], math.inf)
    if torch.stack([means["loss"], means["grad_norm"], largest]).isfinite().all():
        return
    is_saved = (folder / WEIGHTS["last"]).exists()
    saved = f"the weights of the last evaluation are in {folder}; " if is_saved else ""
    raise DivergedError(
        f"the loss is {means['loss']:.3g} at update {n_updates} (gradient norm "
        f"{means['grad_norm']:.3g}, mean Q_tot {means['total_value']:.3g}, largest weight or "
        f"number of the optimiser {largest:.3g}); {saved}"
        "try a lower update.optimizer.lr or loss.reward_scale, or a higher update.optimizer.eps"
    )
