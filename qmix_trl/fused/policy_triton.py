"""Acting in Triton: networks and choice of all agents for one step, in one launch.

The counterpart of ``policy.h`` for agents that share their weights. Only ``triton_loop.py`` imports
this module, and late, since Triton is optional. Sample r is agent r % N of environment r // N; a
program computes BLOCK samples. Tiles are padded to powers of two: padded weights are zero, and so
are padded outputs, also of the GRU.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


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
    """Add products of inputs [BLOCK, IN], of numbers i, and weights of n outputs from ``first``."""
    o = tl.arange(0, padded(n))
    at = weight + (first + o)[None, :] * n_in + i[:, None]
    weights = tl.load(at, mask=(i < n_in)[:, None] & (o < n)[None, :], other=0.0)
    if PRECISION == "tf32x3":
        # As Triton's own "tf32x3", which holds the sums of these products beside ``sums``.
        high, high_weights = rounded(x), rounded(weights)
        low, low_weights = x - high, weights - high_weights
        sums = tl.dot(low, high_weights, sums, input_precision="tf32")
        sums = tl.dot(high, low_weights, sums, input_precision="tf32")
        return tl.dot(high, high_weights, sums, input_precision="tf32")
    return tl.dot(x, weights, sums, input_precision=PRECISION)


@triton.jit
def linear(x, layer, n_in: tl.constexpr, n: tl.constexpr, PRECISION):
    """Return the outputs [BLOCK, OUT] of a layer."""
    sums = tl.zeros([x.shape[0], padded(n)], tl.float32) + bias_of(layer[1], 0, n)
    return add_product(sums, x, tl.arange(0, padded(n_in)), layer[0], 0, n_in, n, PRECISION)


@triton.jit
def add_to_gate(sums, x, weight, bias, k: tl.constexpr, H: tl.constexpr, PRECISION):
    """Add an input's part of gate k of a GRU; torch's order is reset, update, candidate."""
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


@triton.jit(
    do_not_specialize=("t", "n_samples", "n_steps", "slots", "before", "before_steps"),
)
def act(
    # Step t of buffers (buffers.py) of n_steps steps; n_samples is E N.
    t, n_samples, n_steps,
    seen,  # [E, n_steps + 1, SEEN]
    action,  # [E, n_steps, N], written
    value,  # [E, n_steps, N, A], written
    # The step before, step ``before`` of before_steps steps.
    done,  # [E, before_steps]; true: the sample has no memory
    last_action,  # [E, before_steps, N]; -1: none
    before, before_steps,
    # The state before step t is in slot t % slots, the next one is written to the slot after it.
    hidden,  # [E, slots, N, H]; None without a GRU
    slots,
    # The draws, [E, N] and [E, N, A], and epsilon []; None for greedy actions.
    explore, choose, epsilon,
    # Weights and biases of AgentLayers.
    below,  # ((weight, bias), ..)
    rnn,  # (weight_ih, weight_hh, bias_ih, bias_hh), or None
    head,  # (weight, bias)
    N: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    A: tl.constexpr,
    SEEN: tl.constexpr,
    WIDTHS: tl.constexpr,  # of the layers below
    USE_LAST_ACTION: tl.constexpr,
    USE_AGENT_ID: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sample < n_samples
    agent = sample % N
    env = (sample // N).to(tl.int64)
    before_place = env * before_steps + before
    forgets = tl.load(done + before_place, mask=inside, other=1) != 0

    # The hidden state's part of the gates comes first: fewer numbers are held at a time.
    H: tl.constexpr = WIDTHS[len(WIDTHS) - 1]
    h = tl.arange(0, padded(H))
    kept = inside[:, None] & (h < H)[None, :]
    if rnn is not None:
        place = ((env * slots + t % slots) * N + agent)[:, None] * H + h[None, :]
        state = tl.load(hidden + place, mask=kept & (forgets == 0)[:, None], other=0.0)
        zero = tl.zeros([BLOCK, padded(H)], tl.float32)
        reset = add_to_gate(zero, state, rnn[1], rnn[3], 0, H, PRECISION)
        update = add_to_gate(zero, state, rnn[1], rnn[3], 1, H, PRECISION)
        recurrent = add_to_gate(zero, state, rnn[1], rnn[3], 2, H, PRECISION)

    # The first layer. One-hot inputs are 1 in these columns.
    last_column = -1
    if USE_LAST_ACTION:
        last = tl.load(last_action + before_place * N + agent, mask=inside, other=-1).to(tl.int32)
        last_column = tl.where(forgets | (last < 0), -1, O + last)
    id_column = O + A * USE_LAST_ACTION + agent
    D: tl.constexpr = O + A * USE_LAST_ACTION + N * USE_AGENT_ID
    TILE: tl.constexpr = tile_of_inputs(D)
    observation = seen + (env * (n_steps + 1) + t) * SEEN + agent * O
    x = tl.zeros([BLOCK, padded(WIDTHS[0])], tl.float32) + bias_of(below[0][1], 0, WIDTHS[0])
    for first in tl.static_range(0, D, TILE):
        i = first + tl.arange(0, TILE)
        at, read = observation[:, None] + i[None, :], inside[:, None] & (i < O)[None, :]
        inputs = tl.load(at, mask=read, other=0.0)
        if USE_LAST_ACTION:
            inputs = tl.where(i[None, :] == last_column[:, None], 1.0, inputs)
        if USE_AGENT_ID:
            inputs = tl.where(i[None, :] == id_column[:, None], 1.0, inputs)
        x = add_product(x, inputs, i, below[0][0], 0, D, WIDTHS[0], PRECISION)
    x = relu(x)
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
    score = values
    if explore is not None:
        explores = tl.load(explore + sample, mask=inside, other=1.0) < tl.load(epsilon).to(
            tl.float32
        )
        drawn = sample.to(tl.int64)[:, None] * A + a[None, :]
        score = tl.where(explores[:, None], tl.load(choose + drawn, mask=known, other=0.0), values)
    # The first of the highest, as torch's argmax; NaN counts as infinity.
    score = tl.where(score != score, float("inf"), score)
    score = tl.where((a < A)[None, :], score, float("-inf"))
    best = tl.argmax(score, 1, tie_break_left=True)
    tl.store(action + place, best.to(tl.int64), mask=inside)
