"""The steps of a batch, each by one Triton kernel of the policy and one of the environment."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qmix_trl.envs.compiled.engines.buffers import Buffers
from qmix_trl.errors import one_line
from qmix_trl.functional import one_hot
from qmix_trl.fused.step_loop import Collected, Key, StepLoop, zero_where
from qmix_trl.keys import ACTION_MASK, ACTION_VALUE, HIDDEN, IS_INIT, LAST_ACTION, next_key
from qmix_trl.native.build import BuildFailed
from qmix_trl.policy import AgentPolicy, EpsilonGreedyAction, GreedyAction

# Samples (agents of environments) of a program, and the warps that share them.
OPTIONS = {"BLOCK": 64, "num_warps": 4, "num_stages": 1}
WIDEST = 64  # units of a layer: a weight is one tile, and one of 128 x 128 spills 2 KB a thread


def why_not(policy: Any, env: Any) -> str | None:
    """Return the reason why a policy that ``policy_kernel`` knows has no Triton kernel, or None.

    Args:
        policy: of ``make_policy``.
        env: to act in.
    """
    layers = policy.agent.network_layers()
    if any(p.dtype != torch.float32 for p in policy.parameters()):
        return "the agent's weights are not float32"
    if not all(p.is_contiguous() for p in policy.parameters()):
        return "the agent's weights are not contiguous"
    if layers.norms:
        return "the agent has layer_norm, which the kernel does not compute"
    if layers.head.weight.dim() != 2:
        return "agents have weights of their own"
    if not layers.below:
        return "the agent has no hidden layer"
    widest = max(*(layer.weight.shape[0] for layer in layers.below), policy.agent.n_actions)
    if widest > WIDEST:
        return f"expected layers of at most {WIDEST} units, got {widest}"
    below, rnn = layers.below[-1].weight.shape[0], layers.rnn
    if rnn is not None and not rnn.weight_ih.shape == rnn.weight_hh.shape == (3 * below, below):
        return "the GRU has another width than the layer below it"
    if type(policy.head) not in (GreedyAction, EpsilonGreedyAction):
        return f"the head {type(policy.head).__name__} may choose in another way"
    if ACTION_MASK in env.observation_spec.keys(True, True):
        return "the environment has an action mask"
    return None


def with_kernel(loop: StepLoop) -> tuple[StepLoop, str | None]:
    """Return a loop of the same steps that acts by the kernel; or the loop itself, and why.

    Args:
        loop: acts by a policy that ``policy_kernel`` knows.
    """
    reason = why_not(loop.policy, loop.env)
    if reason is None:
        try:
            keeps = loop.keeps_memory
            return TritonLoop(loop.policy, loop.env, loop.n_steps, keeps_memory=keeps), None
        except BuildFailed as failed:
            reason = str(failed)
    return loop, reason


class TritonLoop(StepLoop):
    """Acts by a policy of ``make_policy`` in an environment whose step is compiled.

    Each step is a launch for each of the head's draws, one of the policy's kernel, and the
    environment's own. Weights are read where they are, at each step.

    Products are computed on tensor cores: of three TF32 parts, with nearly the accuracy of
    float32, or in TF32 where ``torch.set_float32_matmul_precision`` allows it.

    Args:
        policy: to act by; it has a kernel (``why_not``).
        env: to act in.
        n_steps: T.
        keeps_memory: as for ``StepLoop``.

    Raises:
        BuildFailed: if Triton does not compile the kernel.
    """

    def __init__(
        self, policy: AgentPolicy, env: Any, n_steps: int, *, keeps_memory: bool = True
    ) -> None:
        super().__init__(policy, env, n_steps, keeps_memory=keeps_memory)
        self.options = dict(OPTIONS)
        exact = torch.get_float32_matmul_precision() == "highest"
        self.precision = "tf32x3" if exact else "tf32"
        self._compile()

    def _compile(self) -> None:
        """Compile the kernel by a launch for no environments."""
        buffers = Buffers.empty(0, 1, self.env.engine.layout, self.env.device)
        made = self._empty(buffers)
        before = Before(buffers.done, buffers.action, 0)
        draws = self.policy.head.draws(0, made.value[:, 0].shape)
        try:
            self._act(0, buffers, made, before, draws, self.policy.head.epsilon_now())
        # Triton, LLVM and ptxas raise errors of any class where a device has no room for the tiles.
        except Exception as error:
            raise BuildFailed(f"Triton: {one_line(error)}") from error

    def _empty(self, buffers: Buffers) -> "Made":
        """Return tensors for all that the kernel writes beside the actions."""
        n_envs, n_steps, n_agents = buffers.action.shape
        agent = self.policy.agent
        value = buffers.reward.new_empty(n_envs, n_steps, n_agents, agent.n_actions)
        if agent.network_layers().rnn is None:
            return Made(value, None)
        slots = n_steps + 1 if self.keeps_memory else 2
        return Made(value, value.new_empty(n_envs, slots, n_agents, agent.hidden_dim))

    @torch.no_grad()
    def collect(self, buffers: Buffers, begins: Tensor, memory: dict[Key, Tensor]) -> Collected:
        """Take all steps of the buffers, as ``Loop.collect``."""
        made, head = self._empty(buffers), self.policy.head
        if made.hidden is not None:
            made.hidden[:, 0] = memory[HIDDEN]
        before = Before(begins.contiguous(), first_actions(buffers, memory), 0)
        epsilon = head.epsilon_now()
        for t in range(self.n_steps):
            draws = head.draws(1, made.value[:, t].shape)
            self._act(t, buffers, made, before, draws, epsilon)
            self.env.engine.advance(buffers, t, 1, reset_when_done=self.env.reset_when_done)
            before = Before(buffers.done, buffers.action, t)
        return self._collected(buffers, begins, memory, made)

    def _act(
        self,
        t: int,
        buffers: Buffers,
        made: "Made",
        before: "Before",
        draws: tuple[Tensor, Tensor] | None,
        epsilon: Tensor | None,
    ) -> None:
        """Launch the kernel for one step.

        Args:
            t: the step.
            buffers: hold the observations of step t; the actions are written to them.
            made: action values and hidden states are written to it.
            before: of the step before.
            draws: of one step, as of the head; None for greedy actions.
            epsilon: as of the head.
        """
        from qmix_trl.fused import policy_triton  # it imports Triton, which is optional

        n_envs, n_steps, n_agents = buffers.action.shape
        agent, n_samples = self.policy.agent, n_envs * n_agents
        layers, inputs = agent.network_layers(), agent.inputs
        explore, choose = (None, None) if draws is None else draws
        grid = (-(-n_samples // self.options["BLOCK"]),)
        with torch.cuda.device_of(buffers.action):  # Triton launches on the current device
            policy_triton.act[grid](
                t,
                n_steps,
                n_samples,
                buffers.seen,
                buffers.action,
                made.value,
                before.done,
                before.action,
                before.t,
                before.done.shape[1],
                made.hidden,
                0 if made.hidden is None else made.hidden.shape[1],
                explore,
                choose,
                epsilon,
                tuple((layer.weight, layer.bias) for layer in layers.below),
                gru_weights(layers.rnn),
                (layers.head.weight, layers.head.bias),
                N=n_agents,
                O=inputs.observation_dim,
                A=agent.n_actions,
                SEEN=buffers.seen.shape[-1],
                WIDTHS=tuple(layer.weight.shape[0] for layer in layers.below),
                USE_LAST_ACTION=inputs.use_last_action,
                USE_AGENT_ID=inputs.use_agent_id,
                PRECISION=self.precision,
                **self.options,
            )

    def _collected(
        self, buffers: Buffers, begins: Tensor, memory: dict[Key, Tensor], made: "Made"
    ) -> Collected:
        """Return the outcome of ``collect``.

        Args:
            buffers: filled.
            begins: as in ``collect``.
            memory: as in ``collect``.
            made: as the kernel has written it.
        """
        done, n_steps = buffers.done, self.n_steps
        resets = done if self.env.reset_when_done else torch.zeros_like(done)
        first = 0 if self.keeps_memory else n_steps - 1  # of the steps whose memory is needed
        after: dict[Key, Tensor] = {LAST_ACTION: one_hot(buffers.action[:, first:], made.value)}
        if made.hidden is not None:
            slots = slice(1, None) if self.keeps_memory else slice(n_steps % 2, n_steps % 2 + 1)
            after[HIDDEN] = made.hidden[:, slots]
        entries: dict[Key, Tensor] = {
            ACTION_VALUE: made.value,
            IS_INIT: torch.cat([begins, resets[:, :-1]], 1).unsqueeze(-1),
        }
        if self.keeps_memory:
            entries |= {next_key(key): value for key, value in after.items()}
            entries |= {key: _before(memory[key], after[key], done) for key in memory}
        last = {key: zero_where(done[:, -1:], after[key][:, -1]) for key in memory}
        return Collected(entries, resets[:, -1:], last)


class Made(NamedTuple):
    """The tensors that the kernel writes beside the actions, in buffers of T steps.

    Attributes:
        value: float [E, T, N, A], the action values.
        hidden: float [E, S, N, H], the hidden state before step t in slot t % S. S is T + 1, or 2
            where the states of steps are not kept. None without a GRU.
    """

    value: Tensor
    hidden: Tensor | None


class Before(NamedTuple):
    """The step before the one to take: step t of T'.

    Attributes:
        done: bool [E, T'], the agents of these environments have no memory.
        action: int64 [E, T', N]; -1 for none.
        t: the step.
    """

    done: Tensor
    action: Tensor
    t: int


def first_actions(buffers: Buffers, memory: dict[Key, Tensor]) -> Tensor:
    """Return the last actions before the first step, int64 [E, 1, N]; -1 for none.

    Args:
        buffers: of the steps.
        memory: with one-hot last actions, if the agent reads them.
    """
    if LAST_ACTION not in memory:
        return torch.full_like(buffers.action[:, :1], -1)
    last = memory[LAST_ACTION].unsqueeze(1)  # [E, 1, N, A]
    return torch.where(last.amax(-1) > 0, last.argmax(-1), -1)


def gru_weights(rnn: Any) -> tuple[Tensor, ...] | None:
    """Return a GRU's weights in the kernel's order; None for none."""
    return None if rnn is None else (rnn.weight_ih, rnn.weight_hh, rnn.bias_ih, rnn.bias_hh)


def _before(first: Tensor, after: Tensor, done: Tensor) -> Tensor:
    """Return the memory before each step.

    Args:
        first: [E, ..], before the first step.
        after: [E, T, ..], after each step.
        done: bool [E, T], the steps after which it is zero.
    """
    before = torch.empty_like(after, memory_format=torch.contiguous_format)
    before[:, 0], before[:, 1:] = first, after[:, :-1]
    before[:, 1:].masked_fill_(done[:, :-1, None, None], 0)
    return before
