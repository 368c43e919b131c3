"""Collection by actors of Ray, for environments that step slowly.

TorchRL's ``RayCollector`` makes the actors. Three things it does not do: its own weight transport
(gloo) ends with the first actor that dies, and listens on all interfaces; its iterators drop the
rows of all other actors then; and its actors restart with their first weights and seeds. So rows
are asked for one actor at a time here, and weights travel as objects of Ray.
"""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.collectors import Collector
from torchrl.collectors.distributed import RayCollector
from torchrl.envs import EnvBase, TransformedEnv

from qmix_trl.chosen import Chosen
from qmix_trl.collect import mark_all_valid, mask_episodes, postprocess
from qmix_trl.envs.team import TeamEnv
from qmix_trl.errors import MachineError, check_extra, one_line
from qmix_trl.keys import POLICY_VERSION
from qmix_trl.native.networks.library import why_not

try:
    import ray  # pyright: ignore[reportMissingImports]
except ImportError:  # ``RayActors`` names the extra
    ray = None

ADDRESS = "RAY_ADDRESS"  # of a cluster; without it Ray begins on this machine alone
START_SECONDS = 600  # in which all actors have to begin
MOST_DEATHS = 3  # of an actor one after another, without a row in between
RESOURCES = {"num_cpus": 1, "num_gpus": 0}  # of an actor


class VersionedPolicy(TensorDictModuleBase):
    """A policy whose weights have a version, which it writes at each step.

    The version is a buffer: it travels with the weights, so that rows tell by which they came.

    Args:
        policy: that acts.

    Attributes:
        version: int64 [].
    """

    version: torch.Tensor

    def __init__(self, policy: TensorDictModuleBase) -> None:
        super().__init__()
        self.policy = policy
        self.in_keys = list(policy.in_keys)
        self.out_keys = [*policy.out_keys, POLICY_VERSION]
        self.register_buffer("version", torch.zeros((), dtype=torch.int64))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Write all that the policy writes, and the version, int64 [*B, 1]."""
        version = self.version.expand(*tensordict.batch_size, 1).clone()
        return self.policy(tensordict).set(POLICY_VERSION, version)


class ActorCollector(Collector):
    """TorchRL's collector in an actor of Ray."""

    def __bool__(self) -> bool:
        # Ray asks it of an actor that raises an error, and ends with one that cannot answer: here
        # by its length, which has no end.
        return True

    def told(self) -> dict[str, str]:
        """Return the implementations that step and act on the actor's host."""
        policy = self.policy
        reason = why_not(list(policy.parameters()), policy)
        name = "layers in C++" if reason is None else "torch's operations"
        layers = Chosen(name, {} if reason is None else {"layers in C++": reason})
        return {"engine": str(how_of(self.env)), "policy": str(layers)}

    def acting(self) -> dict[str, Any]:
        """Return the state of the policy that acts, and the actor's process."""
        return {"process": os.getpid(), "policy": self.policy.state_dict()}


def how_of(env: EnvBase) -> Any:
    """Return the implementation that steps an environment, inside its transforms and its team."""
    while isinstance(env, (TransformedEnv, TeamEnv)):
        env = env.base_env if isinstance(env, TransformedEnv) else env.env
    return getattr(env, "how", type(env).__name__)


@dataclass(frozen=True)
class RemoteEnvs:
    """The environments of actors.

    Attributes:
        how: the implementations that step them.
    """

    how: Chosen


class RayActors:
    """Iterates over batches [E, T] that actors of Ray collect.

    Each actor steps E / K environments and sends rows of T steps. K such sendings make a
    batch, in the order in which they come, so a quick actor may fill the place of a slow one.
    Actors go on while the learner learns, so their weights are older than the learner's
    (``staleness``). An actor is sent the newest weights before it begins its next rows. The entry
    ``policy_version`` of a batch tells by which weights a step was taken.

    An actor that dies is replaced by one with other seeds and the newest weights. The rows that it
    had not sent are lost and counted nowhere: batches have all frames that were asked for.

    Args:
        make_env: returns what makes an actor's environments, by a number that no other actor of
            the run has, replaced ones included; it is sent to the actor.
        policy: that is trained; the actors act by copies on their CPU.
        n_actors: K.
        n_envs: E, a multiple of K.
        rows: as in ``make_collector``.
        steps: T.
        n_batches: the number of batches.
        memory: as in ``make_collector``.
        device: of the batches.

    Attributes:
        env: with ``how``, the implementations that step the actors' environments.
        how: the implementations by which the actors act.
        staleness: how many updates of weights the rows of the last batch are behind, on average.
        n_replaced: the number of actors that died.

    Raises:
        ConfigError: if Ray is not installed.
        MachineError: if the actors do not begin, or one dies again and again.
    """

    def __init__(
        self,
        make_env: Callable[[int], Callable[[], EnvBase]],
        policy: TensorDictModuleBase,
        *,
        n_actors: int,
        n_envs: int,
        rows: str,
        steps: int,
        n_batches: int,
        memory: str = "every_step",
        device: torch.device | str = "cpu",
    ) -> None:
        check_extra("ray", "ray", "collection.collector")
        self._make_env = make_env
        self._policy = VersionedPolicy(policy)
        self._n_actors, self._frames = n_actors, n_envs // n_actors * steps
        self._device = device
        self.n_batches = n_batches
        self.reset_at_each_iter = rows == "episodes"
        add_mask = mask_episodes if self.reset_at_each_iter else mark_all_valid
        shown = None if memory == "every_step" else deepcopy(policy).cpu()
        self._postproc = partial(postprocess, shown, add_mask)
        self._iter = self._n_begun = self.n_replaced = 0
        self.staleness = 0.0
        self._owns_ray = begin_ray(n_actors)
        self._begin()

    def __repr__(self) -> str:
        return f"RayActors(n_actors={self._n_actors}, n_batches={self.n_batches})"

    def _begin(self) -> None:
        """Begin all actors."""
        self._pending: dict[Any, int] = {}  # rows that were asked for: the actor, by object of Ray
        self._beginning: dict[Any, int] = {}  # actors that begin: their number, likewise
        self._deaths = [0] * self._n_actors  # since an actor's last rows
        self._has = [-1] * self._n_actors  # the version that each actor has been sent
        self._sent: tuple[int, Any] = (-1, None)  # a version and its weights, as an object of Ray
        # Actors are added below: given any here, it would wait for ever for a host with room.
        self._collector = RayCollector(
            [],
            self._policy,
            collector_class=ActorCollector,
            collector_kwargs=[],
            remote_configs=[],
            frames_per_batch=self._frames,
            weight_sync_schemes={},  # weights are sent below
        )
        for _ in range(self._n_actors):
            self._add_actor()
        told = self._told()
        engine, policy = (
            " | ".join(dict.fromkeys(each[name] for each in told)) for name in ("engine", "policy")
        )
        self.env = RemoteEnvs(Chosen(engine))
        self.how = Chosen(f"{self._n_actors} actors of Ray, {policy}")

    def _add_actor(self) -> None:
        """Begin another actor, the last one of ``actors``."""
        keywords = {
            "frames_per_batch": self._frames,
            "reset_at_each_iter": self.reset_at_each_iter,
            "postproc": self._postproc,
            "trust_policy": True,
            "auto_register_policy_transforms": False,
        }
        policy = deepcopy(self._policy).cpu()  # its host may have no GPU
        maker = self._make_env(self._n_begun)
        self._collector.add_collectors([maker], 1, policy, [keywords], [RESOURCES])
        self._n_begun += 1

    def _told(self) -> list[dict[str, str]]:
        """Return the implementations that run in each actor.

        Raises:
            MachineError: if they do not begin.
        """
        try:
            return ray.get([a.told.remote() for a in self.actors], timeout=START_SECONDS)
        except ray.exceptions.RayError as error:
            self.shutdown()
            raise MachineError(
                f"collection.collector: ray: expected {self._n_actors} actors, each with a CPU of "
                f"its own, got none within {START_SECONDS} s, or one that ended: "
                f"{one_line(error)}; lower env.processes, or see what `ray status` lacks"
            ) from error

    @property
    def actors(self) -> list[Any]:
        """The handles of the actors, as ``RayCollector`` has them."""
        return self._collector.remote_collectors

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[TensorDictBase]:
        if self._iter < self.n_batches and not (self._pending or self._beginning):
            for i in range(self._n_actors):
                self._ask(i)
        while self._iter < self.n_batches:
            rows = [self._next_rows(self._n_actors - k) for k in range(self._n_actors)]
            batch = torch.cat(rows).to(self._device)  # [E, T]
            self.staleness = (self._policy.version - batch[POLICY_VERSION].double().mean()).item()
            self._iter += 1
            yield batch

    def _next_rows(self, n_missing: int) -> TensorDictBase:
        """Return the next rows that an actor has collected: [E / K, T].

        Args:
            n_missing: the number of rows that the present batch lacks.

        Raises:
            MachineError: if an actor dies again and again, or acts by other weights.
            Exception: that its environments or its policy raised.
        """
        while True:
            (first, *_), _ = ray.wait([*self._pending, *self._beginning], num_returns=1)
            has_begun = first in self._beginning
            i = (self._beginning if has_begun else self._pending).pop(first)
            try:
                rows = ray.get(first)
            except ray.exceptions.RayTaskError as error:  # the actor's code raised it
                raise error.cause from error
            except ray.exceptions.RayError as error:
                self._replace(i, error)
                continue
            if not has_begun:
                self._check_version(i, rows)
                self._deaths[i] = 0
                n_missing -= 1
            later = (self.n_batches - self._iter - 1) * self._n_actors
            if len(self._pending) < later + n_missing:
                self._ask(i)
            if not has_begun:
                return rows

    def _check_version(self, i: int, rows: TensorDictBase) -> None:
        """Refuse rows of other weights than those that actor i was sent.

        Raises:
            MachineError: if it could not take them.
        """
        found = rows[POLICY_VERSION].unique().tolist()
        if found != [self._has[i]]:
            raise MachineError(
                f"collection.collector: ray: expected rows of actor {i} by the weights of version "
                f"{self._has[i]}, which it was sent, got {found}; install the same versions of "
                "this package and of torch on its host"
            )

    def _ask(self, i: int) -> None:
        """Send actor i the present weights, unless it has them, and ask it for rows."""
        version = int(self._policy.version)
        if self._sent[0] != version:
            weights = TensorDict.from_module(self._policy).data.to("cpu").clone()
            self._sent = version, ray.put(weights)
        if self._has[i] != version:
            self.actors[i].update_policy_weights_.remote(self._sent[1])
            self._has[i] = version
        self._pending[self.actors[i].next.remote()] = i

    def _replace(self, i: int, error: Exception) -> None:
        """Begin another actor in the place of one that has died.

        Raises:
            MachineError: if it died again and again.
        """
        self._deaths[i] += 1
        self.n_replaced += 1
        if self._deaths[i] == MOST_DEATHS:
            self.shutdown()
            raise MachineError(
                f"collection.collector: ray: expected rows from actor {i}, which died "
                f"{MOST_DEATHS} times before it sent any: {one_line(error)}; see its logs in "
                "the folder of Ray's session on its host"
            ) from error
        with suppress(ray.exceptions.RayError):
            ray.kill(self.actors[i])
        self._add_actor()
        self.actors[i] = self.actors.pop()
        self._has[i] = -1
        self._beginning[self.actors[i].told.remote()] = i  # its weights are sent when it has begun
        warnings.warn(
            f"actor {i} of {self._n_actors} died, and another one takes its place "
            f"({self.n_replaced} so far)",
            stacklevel=2,
        )

    def update_policy_weights_(self) -> None:
        """Count the weights' version; actors are sent them before their next rows."""
        self._policy.version.add_(1)

    def run_state(self) -> dict[str, Any]:
        """Return a state that goes on by new actors: with new episodes, and other seeds."""
        return {
            "iter": self._iter,
            "begun": self._n_begun,
            "replaced": self.n_replaced,
            "policy": self._policy.state_dict(),
        }

    def load_run_state(self, state: Mapping[str, Any]) -> None:
        """Continue after the batches of a ``run_state``, by new actors."""
        self._collector.shutdown()
        self._policy.load_state_dict(state["policy"])
        self._iter, self._n_begun = state["iter"], state["begun"]
        self.n_replaced = state["replaced"]
        self._begin()

    def shutdown(self) -> None:
        """End the actors, and Ray if it was begun here."""
        self._collector.shutdown()
        if self._owns_ray:
            ray.shutdown()


def begin_ray(n_actors: int) -> bool:
    """Connect to the cluster of ``RAY_ADDRESS``, or begin Ray on this machine alone.

    On this machine alone it listens on the loopback interface only, without a dashboard, and sends
    no usage statistics. Nothing is done where the process is connected already.

    Returns:
        whether Ray was begun or connected to.

    Raises:
        MachineError: if it cannot be.
    """
    from ray._private import ray_constants  # pyright: ignore[reportMissingImports]

    if ray.is_initialized():
        return False
    quiet = {"log_to_driver": False, "logging_level": "warning"}
    try:
        if os.environ.get(ADDRESS):
            ray.init(**quiet)
            return True
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        # On Linux Ray replaces a loopback address by the machine's own, unless it is told to
        # stay on it as on macOS; the environment variable for it is read at ray's import.
        has_network = ray_constants.ENABLE_RAY_CLUSTER
        ray_constants.ENABLE_RAY_CLUSTER = False
        try:
            n_cpus = max(n_actors, os.cpu_count() or 1)
            ray.init(address="local", include_dashboard=False, num_cpus=n_cpus, **quiet)
        finally:
            ray_constants.ENABLE_RAY_CLUSTER = has_network
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise MachineError(
            f"collection.collector: ray: expected a cluster at {ADDRESS}, or Ray to begin here, "
            f"got {one_line(error)}; unset {ADDRESS} to stay on this machine"
        ) from error
    return True
