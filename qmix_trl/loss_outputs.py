"""The outputs of the loss: its reduction, the priorities of rows, and diagnostics."""

from tensordict import TensorDict
from torch import Tensor

from qmix_trl.functional import keep_where

PRIORITY_ETA = 0.9  # the weight of the largest error against the mean error: R2D2, section 2.3


def loss_outputs(
    loss: Tensor, error: Tensor, total: Tensor, target: Tensor, trained: Tensor, reduction: str
) -> TensorDict:
    """Return the loss's outputs.

    Args:
        loss: the weighted squared errors [B, T, M].
        error: the errors [B, T, M].
        total: the learned values [B, T, M].
        target: the targets [B, T, M].
        trained: the steps that count, bool [B, T].
        reduction: "mean" over them, "sum", or "none".
    """
    n_values = trained.sum() * error.shape[-1]
    n_trained = n_values.clamp(min=1)
    absolute = error.abs()
    row_steps = trained.sum(1).clamp(min=1) * error.shape[-1]  # [B]
    largest, mean = absolute.amax((1, 2)), absolute.sum((1, 2)) / row_steps
    if reduction == "mean":
        loss = loss.sum() / n_trained
    elif reduction == "sum":
        loss = loss.sum()
    return TensorDict(
        {
            "loss": loss,
            "priority": PRIORITY_ETA * largest + (1 - PRIORITY_ETA) * mean,
            "td_error": absolute.sum() / n_trained,
            "total_value": keep_where(trained, total).sum() / n_trained,
            "target_value": keep_where(trained, target).sum() / n_trained,
            "n_values": n_values,
        }
    )
