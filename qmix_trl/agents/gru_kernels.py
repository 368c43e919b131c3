"""The Triton kernels of ``gru_triton.py``: a program computes all steps of one agent's sequence.

The recurrent weights stay in registers from the first step to the last, and a step's inputs are
loaded during the step before it. All vectors have the shape [1, H] and pointers no known alignment,
so that Triton gives every tensor the same layout: a thread has one column, and values change
threads only where a sum over H needs it.
"""

import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]


@triton.jit
def _add_gates(a_r, a_u, a_n, b_r, b_u, b_n):
    return a_r + b_r, a_u + b_u, a_n + b_n


@triton.jit
def _load_gates(place, distance, there):
    """Return three vectors, or matrices, that lie a distance apart."""
    r, u = tl.load(place, there, 0.0), tl.load(place + distance, there, 0.0)
    return r, u, tl.load(place + 2 * distance, there, 0.0)


@triton.jit
def _store_gates(place, r, u, n, distance, there):
    tl.store(place, r, there)
    tl.store(place + distance, u, there)
    tl.store(place + 2 * distance, n, there)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit(
    do_not_specialize=["n_steps", "n_agents"],
    do_not_specialize_on_alignment=["gates", "first", "weight", "bias", "hiddens", "kept"],
)
def forward(
    gates,
    is_init,
    first,
    weight,
    bias,
    hiddens,
    kept,
    n_steps,
    n_agents,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
    HAS_FIRST: tl.constexpr,
    KEEP: tl.constexpr,
):
    """Write the hidden states of a sequence and, with KEEP, the values for ``backward``.

    Args:
        gates: [B, T, N, 3H], the input's part.
        is_init: [B, T], bytes.
        first: [B, N, H], the hidden state before the first step; not read without HAS_FIRST.
        weight: [G, 3, H, H], from the hidden state to each gate; G is 1, or N with OWN.
        bias: [G, 3H].
        hiddens: [B, T, N, H], written.
        kept: [5, B, T, N, H], written with KEEP.
        n_steps: T.
        n_agents: N.
        H: the size of the hidden state.
        WIDTH: a power of two, at least H.
        OWN: agents have weights of their own.
        HAS_FIRST: there is a first hidden state; if not, it is zero.
        KEEP: there will be a backward.
    """
    sequence, agent = tl.program_id(0) // n_agents, tl.program_id(0) % n_agents
    if OWN:
        weight += agent * 3 * H * H
        bias += agent * 3 * H
    to, of = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH)[:, None]
    there = to < H
    square = (of < H) & there
    weight_r, weight_u, weight_n = _load_gates(weight + of * H + to, H * H, square)
    bias_r, bias_u, bias_n = _load_gates(bias + to, H, there)
    hidden = tl.zeros([1, WIDTH], tl.float32)
    if HAS_FIRST:
        hidden = tl.load(first + tl.program_id(0) * H + to, there, 0.0)
    n_values = tl.num_programs(0).to(tl.int64) * n_steps * H  # of [B, T, N, H]
    start = sequence.to(tl.int64) * n_steps
    begins = tl.load(is_init + start)
    row = start * n_agents + agent  # of [B, T, N]
    gate_r, gate_u, gate_n = _load_gates(gates + row * 3 * H + to, H, there)
    for t in range(n_steps):
        ahead = start + tl.minimum(t + 1, n_steps - 1)
        next_begins = tl.load(is_init + ahead)
        next_row = ahead * n_agents + agent
        next_r, next_u, next_n = _load_gates(gates + next_row * 3 * H + to, H, there)
        hidden = tl.where(begins != 0, 0.0, hidden)
        column = tl.trans(hidden)  # [H, 1]
        share_r, share_u, share = tl.reduce(
            (weight_r * column, weight_u * column, weight_n * column), 0, _add_gates, keep_dims=True
        )
        share += bias_n
        reset = tl.sigmoid(gate_r + share_r + bias_r)
        update = tl.sigmoid(gate_u + share_u + bias_u)
        candidate = _tanh(gate_n + reset * share)
        if KEEP:
            place = kept + row * H + to
            tl.store(place, hidden, there)
            _store_gates(place + n_values, reset, update, candidate, n_values, there)
            tl.store(place + 4 * n_values, share, there)
        hidden = candidate + update * (hidden - candidate)
        tl.store(hiddens + row * H + to, hidden, there)
        row, begins, gate_r, gate_u, gate_n = next_row, next_begins, next_r, next_u, next_n


@triton.jit
def _load_kept(place, n_values, there):
    """Return hidden state, reset gate, update gate, candidate and its recurrent share."""
    hidden, share = tl.load(place, there, 0.0), tl.load(place + 4 * n_values, there, 0.0)
    reset, update, candidate = _load_gates(place + n_values, n_values, there)
    return hidden, reset, update, candidate, share


@triton.jit(
    do_not_specialize=["n_steps", "n_agents"],
    do_not_specialize_on_alignment=[
        "kept",
        "weight",
        "grad_hiddens",
        "grad_gates",
        "grad_shares",
        "grad_first",
        "grad_bias",
    ],
)
def backward(
    kept,
    is_init,
    weight,
    grad_hiddens,
    grad_gates,
    grad_shares,
    grad_first,
    grad_bias,
    n_steps,
    n_agents,
    H: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
):
    """Write the gradients of a sequence's gates, of their recurrent part, ``first`` and ``bias``.

    Args:
        kept: [5, B, T, N, H], of ``forward``.
        is_init: as in ``forward``.
        weight: [G, 3, H, H], from each gate to the hidden state.
        grad_hiddens: [B, T, N, H].
        grad_gates: [B, T, N, 3H], written.
        grad_shares: [B, T, N, 3H], of the recurrent part of the gates; written.
        grad_first: [B, N, H], written.
        grad_bias: [B, N, 3H], each sequence's part; written.
        n_steps: T.
        n_agents: N.
        H: as in ``forward``.
        WIDTH: as in ``forward``.
        OWN: as in ``forward``.
    """
    sequence, agent = tl.program_id(0) // n_agents, tl.program_id(0) % n_agents
    if OWN:
        weight += agent * 3 * H * H
    to, of = tl.arange(0, WIDTH)[None, :], tl.arange(0, WIDTH)[:, None]
    there = to < H
    square = (of < H) & there
    weight_r, weight_u, weight_n = _load_gates(weight + of * H + to, H * H, square)
    grad = tl.zeros([1, WIDTH], tl.float32)
    sum_r, sum_u, sum_n = grad, grad, grad
    n_values = tl.num_programs(0).to(tl.int64) * n_steps * H  # of [B, T, N, H]
    start = sequence.to(tl.int64) * n_steps
    begins = tl.load(is_init + start + n_steps - 1)
    row = (start + n_steps - 1) * n_agents + agent
    hidden, reset, update, candidate, share = _load_kept(kept + row * H + to, n_values, there)
    given = tl.load(grad_hiddens + row * H + to, there, 0.0)
    for back in range(n_steps):
        before = start + tl.maximum(n_steps - 2 - back, 0)
        next_begins = tl.load(is_init + before)
        next_row = before * n_agents + agent
        next_hidden, next_reset, next_update, next_candidate, next_share = _load_kept(
            kept + next_row * H + to, n_values, there
        )
        next_given = tl.load(grad_hiddens + next_row * H + to, there, 0.0)
        grad += given
        grad_n = grad * (1 - update) * (1 - candidate * candidate)
        grad_u = grad * (hidden - candidate) * update * (1 - update)
        grad_r = grad_n * share * reset * (1 - reset)
        grad_share = grad_n * reset
        _store_gates(grad_gates + row * 3 * H + to, grad_r, grad_u, grad_n, H, there)
        _store_gates(grad_shares + row * 3 * H + to, grad_r, grad_u, grad_share, H, there)
        sum_r, sum_u, sum_n = sum_r + grad_r, sum_u + grad_u, sum_n + grad_share
        part_r, part_u, part_n = tl.reduce(
            (
                weight_r * tl.trans(grad_r),
                weight_u * tl.trans(grad_u),
                weight_n * tl.trans(grad_share),
            ),
            0,
            _add_gates,
            keep_dims=True,
        )
        grad = grad * update + part_r + part_u + part_n
        grad = tl.where(begins != 0, 0.0, grad)
        row, begins, given, hidden = next_row, next_begins, next_given, next_hidden
        reset, update, candidate, share = next_reset, next_update, next_candidate, next_share
    tl.store(grad_first + tl.program_id(0) * H + to, grad, there)
    _store_gates(grad_bias + tl.program_id(0) * 3 * H + to, sum_r, sum_u, sum_n, H, there)
