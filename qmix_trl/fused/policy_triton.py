"""Acting in Triton: networks and choice of all agents for one step, in one launch.

The counterpart of ``policy.h`` for agents that share their weights. Only ``triton_loop.py`` imports
this module, and late, since Triton is optional. Sample r is agent r % N of environment r // N; a
program computes BLOCK samples. Tiles are padded to powers of two: padded weights are zero, and so
are padded outputs, also of the GRU.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

SIZES = ("t", "n_steps", "n_samples", "before", "before_steps", "slots")


@triton.constexpr_function
def padded(size):
    """Return the side of a tile: products on tensor cores have sides of at least 16."""
    return max(16, triton.next_power_of_2(size))


@triton.constexpr_function
def tile_of_inputs(size):
    """Return how many inputs are read at a time, as there may be thousands."""
    return min(64, padded(size))


@triton.jit
def bias_of(bias, first, n: tl.constexpr):
    """Return biases ``first`` to ``first + n`` [1, OUT]."""
    o = tl.arange(0, padded(n))
    return tl.load(bias + first + o, mask=o < n, other=0.0)[None, :]


@triton.jit
def rounded(x):
    """Return numbers rounded to the 10 bits after the point of TF32."""
    bits = x.to(tl.int32, bitcast=True)
    return ((bits + 4096) & -8192).to(tl.float32, bitcast=True)


@triton.jit
def add_product(sums, x, i, weight, first, n_in: tl.constexpr, n: tl.constexpr, PRECISION):
    """Return sums [BLOCK, OUT] plus the products of inputs and weights.

    Args:
        sums: [BLOCK, OUT].
        x: inputs [BLOCK, IN].
        i: their numbers [IN].
        weight: [.., n_in].
        first: the first output, a row of the weight.
        n_in: the number of all inputs.
        n: the number of outputs.
        PRECISION: as of ``tl.dot``.
    """
    o = tl.arange(0, padded(n))
    at = weight + (first + o)[None, :] * n_in + i[:, None]
    weights = tl.load(at, mask=(i < n_in)[:, None] & (o < n)[None, :], other=0.0)
    if PRECISION == "tf32x3":
        # As Triton's own "tf32x3", which holds the sums of these products beside ``sums`` and so
        # spills ten times as many registers. Unlike there, infinite inputs give NaN.
        high, high_weights = rounded(x), rounded(weights)
        low, low_weights = x - high, weights - high_weights
        sums = tl.dot(low, high_weights, sums, input_precision="tf32")
        sums = tl.dot(high, low_weights, sums, input_precision="tf32")
        return tl.dot(high, high_weights, sums, input_precision="tf32")
    return tl.dot(x, weights, sums, input_precision=PRECISION)


@triton.jit
def linear(x, layer, n_in: tl.constexpr, n: tl.constexpr, PRECISION):
    """Return the outputs [BLOCK, OUT] of a linear layer.

    Args:
        x: inputs [BLOCK, IN].
        layer: weight and bias.
        n_in: the number of inputs.
        n: the number of outputs.
        PRECISION: as of ``tl.dot``.
    """
    sums = tl.zeros([x.shape[0], padded(n)], tl.float32) + bias_of(layer[1], 0, n)
    return add_product(sums, x, tl.arange(0, padded(n_in)), layer[0], 0, n_in, n, PRECISION)


@triton.jit
def add_to_gate(sums, x, weight, bias, k: tl.constexpr, H: tl.constexpr, PRECISION):
    """Return sums [BLOCK, H] plus an input's part of a gate of a GRU.

    Args:
        sums: [BLOCK, H].
        x: the layer below, or the hidden state.
        weight: [3H, H].
        bias: [3H].
        k: 0 for the reset gate, 1 for the update gate, 2 for the candidate.
        H: the number of hidden units.
        PRECISION: as of ``tl.dot``.
    """
    sums += bias_of(bias, k * H, H)
    return add_product(sums, x, tl.arange(0, padded(H)), weight, k * H, H, H, PRECISION)


@triton.jit
def relu(x):
    """Return positive numbers and NaN; others become 0."""
    return tl.where(x < 0, 0.0, x)


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent, which Triton's interpreter lacks."""
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def first_layer(
    layer,
    observation,
    inside,
    last_column,
    id_column,
    O: tl.constexpr,  # noqa: E741
    D: tl.constexpr,
    n: tl.constexpr,
    PRECISION,
):
    """Return the outputs [BLOCK, OUT] of the first layer with its ReLU.

    Its inputs are the observation, and 1 in the columns of the last action and of the agent's id.

    Args:
        layer: weight and bias.
        observation: where each sample's begins.
        inside: the samples that there are.
        last_column: of the last action; -1 for none.
        id_column: of the agent's id; -1 for none.
        O: the size of an observation.
        D: the number of inputs.
        n: the number of outputs.
        PRECISION: as of ``tl.dot``.
    """
    sums = tl.zeros([inside.shape[0], padded(n)], tl.float32) + bias_of(layer[1], 0, n)
    for first in tl.static_range(0, D, tile_of_inputs(D)):
        i = first + tl.arange(0, tile_of_inputs(D))
        read = inside[:, None] & (i < O)[None, :]
        x = tl.load(observation[:, None] + i[None, :], mask=read, other=0.0)
        is_one = (i[None, :] == last_column[:, None]) | (i[None, :] == id_column[:, None])
        x = tl.where(is_one, 1.0, x)
        sums = add_product(sums, x, i, layer[0], 0, D, n, PRECISION)
    return relu(sums)


@triton.jit
def highest(score, A: tl.constexpr):
    """Return the first action of the highest score, as torch's argmax, but NaN equals infinity."""
    score = tl.where(score != score, float("inf"), score)
    score = tl.where((tl.arange(0, padded(A)) < A)[None, :], score, float("-inf"))
    return tl.argmax(score, 1, tie_break_left=True).to(tl.int64)


@triton.jit(do_not_specialize=SIZES)
def act(
    t, n_steps, n_samples, seen, action, value,
    done, last_action, before, before_steps, hidden, slots,
    explore, choose, epsilon,
    below, rnn, head,
    N: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    A: tl.constexpr,
    SEEN: tl.constexpr,
    WIDTHS: tl.constexpr,
    USE_LAST_ACTION: tl.constexpr,
    USE_AGENT_ID: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write actions, action values and hidden states of one step.

    Args:
        t: the step.
        n_steps: T, of the buffers (buffers.py).
        n_samples: E N.
        seen: [E, T + 1, SEEN].
        action: [E, T, N], written.
        value: [E, T, N, A], written.
        done: [E, before_steps]; where true in the step before, there is no memory.
        last_action: [E, before_steps, N], of the step before; -1 for none.
        before: the step before, of these two.
        before_steps: their number of steps.
        hidden: [E, slots, N, H], before step t in slot t % slots; the next slot is written. None
            without a GRU.
        slots: see ``hidden``.
        explore: [E, N], an agent explores where it is below epsilon; None for greedy actions.
        choose: [E, N, A], an exploring agent takes the action of the highest.
        epsilon: [].
        below: ((weight, bias), ..), of the layers before the GRU or head.
        rnn: (weight_ih, weight_hh, bias_ih, bias_hh), or None.
        head: (weight, bias).
        N: the number of agents.
        O: the size of an observation.
        A: the number of actions.
        SEEN: the size of observation and state in ``seen``.
        WIDTHS: of the layers below.
        USE_LAST_ACTION: the last action is part of the input.
        USE_AGENT_ID: the agent's id is part of the input.
        PRECISION: of products, as of ``tl.dot``.
        BLOCK: samples of a program.
    """
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < n_samples
    agent = sample % N
    env = (sample // N).to(tl.int64)
    before_place = env * before_steps + before
    forgets = tl.load(done + before_place, mask=inside, other=1) != 0
    H: tl.constexpr = WIDTHS[len(WIDTHS) - 1]
    h = tl.arange(0, padded(H))
    kept = inside[:, None] & (h < H)[None, :]
    if rnn is not None:  # the state's part of the gates first: fewer numbers are held at a time
        place = ((env * slots + t % slots) * N + agent)[:, None] * H + h[None, :]
        state = tl.load(hidden + place, mask=kept & (forgets == 0)[:, None], other=0.0)
        zero = tl.zeros([BLOCK, padded(H)], tl.float32)
        reset = add_to_gate(zero, state, rnn[1], rnn[3], 0, H, PRECISION)
        update = add_to_gate(zero, state, rnn[1], rnn[3], 1, H, PRECISION)
        recurrent = add_to_gate(zero, state, rnn[1], rnn[3], 2, H, PRECISION)

    D: tl.constexpr = O + A * USE_LAST_ACTION + N * USE_AGENT_ID
    last_column = tl.full([BLOCK], -1, tl.int32)
    id_column = D - N + agent if USE_AGENT_ID else last_column
    if USE_LAST_ACTION:
        last = tl.load(last_action + before_place * N + agent, mask=inside, other=-1).to(tl.int32)
        last_column = tl.where(forgets | (last < 0), -1, O + last)
    observation = seen + (env * (n_steps + 1) + t) * SEEN + agent * O
    x = first_layer(
        below[0], observation, inside, last_column, id_column, O, D, WIDTHS[0], PRECISION
    )
    for k in tl.static_range(1, len(WIDTHS)):
        x = relu(linear(x, below[k], WIDTHS[k - 1], WIDTHS[k], PRECISION))

    if rnn is not None:
        reset = tl.sigmoid(add_to_gate(reset, x, rnn[0], rnn[2], 0, H, PRECISION))
        new = tanh(add_to_gate(reset * recurrent, x, rnn[0], rnn[2], 2, H, PRECISION))
        update = tl.sigmoid(add_to_gate(update, x, rnn[0], rnn[2], 1, H, PRECISION))
        x = new + update * (state - new)
        place = ((env * slots + (t + 1) % slots) * N + agent)[:, None] * H + h[None, :]
        tl.store(hidden + place, x, mask=kept)

    values = linear(x, head, H, A, PRECISION)
    a = tl.arange(0, padded(A))
    known = inside[:, None] & (a < A)[None, :]
    place = (env * n_steps + t) * N + agent
    tl.store(value + place[:, None] * A + a[None, :], values, mask=known)
    if explore is not None:
        draw = tl.load(explore + sample, mask=inside, other=1.0)
        drawn = choose + sample.to(tl.int64)[:, None] * A + a[None, :]
        explores = (draw < tl.load(epsilon).to(tl.float32))[:, None]
        values = tl.where(explores, tl.load(drawn, mask=known, other=0.0), values)
    tl.store(action + place, highest(values, A), mask=inside)
