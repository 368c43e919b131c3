"""Collection of batches of T steps: by TorchRL's collector, or by the fused collector."""

from collections.abc import Callable
from functools import partial

from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.envs import EnvBase, TransformedEnv

from qmix_trl.chosen import Chosen
from qmix_trl.functional import first_episode_mask
from qmix_trl.fused import FusedCollector, why_not
from qmix_trl.fused.collector import carried_keys, collector_repr, show_first_memory
from qmix_trl.keys import DONE, EPISODE_REWARD, MASK, next_key

ROWS = ("episodes", "slices")
COLLECTORS = ("auto", "fused", "stock")
MEMORY = ("every_step", "first_step")


class StockCollector(Collector):
    """TorchRL's collector; made by ``make_collector``.

    Attributes:
        how: the collector, and why there is no fused one.
    """

    how: Chosen

    def _increment_frames(self, numel: int) -> bool:
        """Count frames; return whether they are enough.

        TorchRL also closes the environment then, whose state the last checkpoint still needs.
        """
        self._frames += numel
        return self._frames >= self.total_frames

    def __repr__(self) -> str:
        n_batches = self.total_frames // self.requested_frames_per_batch
        steps = self.requested_frames_per_batch // self.env.batch_size.numel()
        return collector_repr(self, self.env, steps, n_batches)


def make_collector(
    env: EnvBase,
    policy: TensorDictModuleBase,
    *,
    rows: str,
    steps: int,
    n_batches: int,
    collector: str = "auto",
    memory: str = "every_step",
) -> Collector | FusedCollector:
    """Return an iterator over batches [E, T] in TorchRL's layout, with ``mask``.

    Its attribute ``how``, a ``Chosen``, tells the implementation.

    Args:
        env: an environment under the contract, with the agent's memory; its batch may have any
            shape, E is its number of environments.
        policy: the policy that acts.
        rows: "episodes": all environments are reset together before each batch, and the steps
            after an episode's end are masked; "slices": each environment is reset when it is done
            (``reset_when_done=True``), episodes reach across batches, and every step is valid.
        steps: T.
        n_batches: the number of batches.
        collector: "stock": TorchRL's; "fused": without TorchRL's step loop; "auto": fused where
            the environment allows. Both give the same numbers.
        memory: "every_step": batches hold the agent's memory before and after each step;
            "first_step": they show the memory at their first step at every step, all that replay
            without burn-in stores. On a GPU it saves more than half of a batch's memory.

    Raises:
        ValueError: if ``rows``, ``collector`` or ``memory`` is none of these, the environment has
            no fused collection, or slices are asked of one that is not reset when done.
        MachineError: if a GPU has no room for the steps of a batch.
    """
    for name, value, known in (
        ("rows", rows, ROWS),
        ("collector", collector, COLLECTORS),
        ("memory", memory, MEMORY),
    ):
        if value not in known:
            raise ValueError(
                f"make_collector: expected {name} of {', '.join(known)}, got {value!r}"
            )
    if rows == "slices" and not is_reset_when_done(env):
        raise ValueError(
            "make_collector: expected an environment that is reset when it is done for "
            "rows='slices', got reset_when_done=False; make it with True, or take rows='episodes'"
        )
    keeps_memory = memory == "every_step"
    add_mask = mask_episodes if rows == "episodes" else mark_all_valid
    not_fused = "collector is 'stock'" if collector == "stock" else why_not(env)
    if collector == "fused" or not_fused is None:
        return FusedCollector(
            env,
            policy,
            steps=steps,
            n_batches=n_batches,
            reset_at_each_iter=rows == "episodes",
            postproc=add_mask,
            keeps_memory=keeps_memory,
        )
    frames_per_batch = env.batch_size.numel() * steps
    stock = StockCollector(
        env,
        policy,
        frames_per_batch=frames_per_batch,
        total_frames=frames_per_batch * n_batches,
        reset_at_each_iter=rows == "episodes",
        postproc=partial(postprocess, None if keeps_memory else policy, add_mask),
        trust_policy=True,
        auto_register_policy_transforms=False,
    )
    stock.how = Chosen("TorchRL's Collector", {"fused collector": not_fused})
    return stock


def is_reset_when_done(env: EnvBase) -> bool:
    """Return whether an environment is reset when it is done; one that does not say so is."""
    while isinstance(env, TransformedEnv):
        env = env.base_env
    return vars(env).get("reset_when_done", True)  # environments answer for others' attributes


def postprocess(
    policy: TensorDictModuleBase | None,
    add_mask: Callable[[TensorDictBase], TensorDictBase],
    batch: TensorDictBase,
) -> TensorDictBase:
    """Return a batch of TorchRL's collector as a batch [E, T] with its mask.

    Args:
        policy: whose memory of later steps is left out; None to keep it.
        add_mask: sets the mask.
        batch: [*B, T]; a single environment without a batch has [T].
    """
    if batch.dim() != 2:
        batch = batch.reshape(-1, batch.shape[-1])
    if policy is None:
        return add_mask(batch)
    present = batch.keys(True, True)
    first = {key: batch.get(key)[:, 0] for key in carried_keys(policy) if key in present}
    return add_mask(show_first_memory(batch, first))


def mask_episodes(batch: TensorDictBase) -> TensorDictBase:
    """Set the mask of a batch [E, T] to the first episode of each environment."""
    return batch.set(MASK, first_episode_mask(batch.get(next_key(DONE))))


def mark_all_valid(batch: TensorDictBase) -> TensorDictBase:
    """Mark all steps of a batch [E, T] as valid."""
    return batch.set(MASK, batch.get(next_key(DONE))[..., 0].new_ones(batch.shape))


def finished_return(batch: TensorDictBase) -> float | None:
    """Return the mean team return of the episodes that ended in a batch; None if none did.

    Args:
        batch: [E, T], collected with TorchRL's ``RewardSum`` of the team's reward.
    """
    ended = batch.get(next_key(DONE))[..., 0] & batch.get(MASK)  # [E, T]
    returns = batch.get(next_key(EPISODE_REWARD))[ended]
    return returns.mean().item() if len(returns) else None
