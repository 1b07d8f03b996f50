"""The recurrence in plain PyTorch, chunk by chunk, with its own backward (scan.py): the CPU's training path."""

# B batch, T time, H heads, K key dim, V value dim, G precisions a head, N sequences packed along T, C chunk size
from functools import partial

import torch
from torch import Tensor

from .groups import num_precisions
from .library import call_forward, needs_backward
from .scan import Plan, make_plan
from .sequences import linked, map_sequences
from .types import PalimpsaOutput, PalimpsaState
from .validation import check_sequence_inputs, compute_dtype


def palimpsa_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    *,
    scale: float | None = None,
    initial_state: tuple[Tensor, Tensor] | None = None,
    output_final_state: bool = False,
    output_variance: bool = False,
    cu_seqlens: Tensor | None = None,
    chunk_size: int | None = None,
) -> PalimpsaOutput:
    """The operator of `palimpsa` in chunks of tokens; same arguments, results and errors.

    Args:
        chunk_size: tokens whose states exist at one time, in the forward and in the backward; chosen by the sizes
            if None. It changes speed and memory, never the result.

    Example:
        >>> import torch
        >>> q = k = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> v = beta = torch.ones(1, 1, 1, 1)
        >>> palimpsa_chunked(q, k, v, beta, torch.zeros(1, 1, 1), torch.ones(1), scale=1.0).o.item()
        0.5
    """
    scale, state = check_sequence_inputs(q, k, v, beta, g, importance_prior, scale, initial_state, cu_seqlens)
    if chunk_size is not None and (not isinstance(chunk_size, int) or chunk_size < 1):
        raise ValueError(f"chunk_size must be a positive integer or None, got {chunk_size!r}")
    run = partial(
        _run,
        importance_prior=importance_prior,
        scale=scale,
        output_final_state=output_final_state,
        output_variance=output_variance,
        chunk_size=chunk_size,
    )
    # Autocast would round the products to half precision behind the recurrence's back.
    with torch.autocast(q.device.type, enabled=False):
        if cu_seqlens is not None:
            return map_sequences(run, q, k, v, beta, g, state, cu_seqlens)
        return run(q, k, v, beta, g, state)


def _run(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    initial_state: PalimpsaState | None,
    *,
    importance_prior: Tensor,
    scale: float,
    output_final_state: bool,
    output_variance: bool,
    chunk_size: int | None,
) -> PalimpsaOutput:
    B, T, H, _ = q.shape
    K, V = q.shape[-1], v.shape[-1]
    if T == 0 or v.numel() == 0:
        return no_tokens(q, k, v, beta, g, importance_prior, B, initial_state, output_final_state, output_variance)
    if beta is None and initial_state is None:
        chunk_size = chunk_size or 32
        return _linear_attention(q, k, v, g, importance_prior, scale, output_final_state, output_variance, chunk_size)
    if beta is None:
        beta = zero_precisions(v, initial_state)
    mean, importance = (None, None) if initial_state is None else initial_state
    tensors = (q, k, v, beta, g, importance_prior, mean, importance)
    plan: Plan = make_plan(B, T, H, K, V, q.device, chunk_size)
    save = needs_backward(*tensors)
    o, variance, mean, importance, _ = call_forward(
        "chunked", *tensors, None, scale, plan.num_rows, plan.chunk_size, save, output_final_state, output_variance
    )
    return PalimpsaOutput(
        o,
        variance if output_variance else None,
        PalimpsaState(mean, importance) if output_final_state else None,
    )


def zero_precisions(v: Tensor, initial_state: PalimpsaState | None) -> Tensor:
    """What beta = None stands for where importances change: zeros [B, T, H, G], with the state's G."""
    return v.new_zeros(*v.shape[:-1], num_precisions(v, None, initial_state))


def no_tokens(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor | None,
    g: Tensor,
    importance_prior: Tensor,
    num_states: int,
    initial_state: PalimpsaState | None,
    output_final_state: bool,
    output_variance: bool,
) -> PalimpsaOutput:
    """The result for an empty v: its states are those before the first token."""
    (H, K), V = q.shape[2:], v.shape[-1]
    dtype = compute_dtype(v.dtype)
    state = None
    if output_final_state and initial_state is not None:
        # Copies: a decode step writes into the final state.
        state = PalimpsaState(*(x.to(dtype, copy=True) for x in initial_state))
    elif output_final_state:
        prior = importance_prior.to(dtype)[:, None, None].expand(num_states, H, K, num_precisions(v, beta, None))
        state = PalimpsaState(prior.new_zeros(num_states, H, K, V), prior.clone())
    inputs = (q, k, v, beta, g, importance_prior, *(initial_state or ()))
    if state is not None:
        state = PalimpsaState(*(linked(x, inputs) for x in state))
    return PalimpsaOutput(linked(v, inputs), linked(v, inputs) if output_variance else None, state)


def _linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    output_final_state: bool,
    output_variance: bool,
    chunk_size: int,
) -> PalimpsaOutput:
    """beta = 0 from the prior: I_t = I_prior for ever, so the operator is simple gated linear attention / I_prior."""
    B, T, H, K = q.shape
    V, out_dtype, dtype = v.shape[-1], v.dtype, compute_dtype(q.dtype)
    C = min(chunk_size, T)
    pad = -T % C
    N = (T + pad) // C

    def split(x: Tensor) -> Tensor:
        # [B, T, H, D] -> [N, B * H, C, D]; a padded token writes nothing (k = 0) and keeps the memory (g = 0).
        x = torch.nn.functional.pad(x.to(dtype), (0, 0, 0, 0, 0, pad))
        return x.view(B, N, C, H, -1).permute(1, 0, 3, 2, 4).reshape(N, B * H, C, -1)

    q_n, k_n, v_n = split(q) * scale, split(k), split(v)
    log_decay = split(g[..., None])
    # Sum of g over s+1..t as a masked cumulative sum: a difference of two would lose small decays and turn -inf into
    # NaN. The last column (s = -1) is the decay since the chunk began.
    lower = torch.ones(C, C + 1, dtype=torch.bool, device=q.device).tril(-1)
    lower[:, C] = True
    segments = log_decay.expand(N, B * H, C, C + 1).masked_fill(~lower, 0).cumsum(-2)
    causal = lower | torch.eye(C, C + 1, dtype=torch.bool, device=q.device)
    decay = segments.masked_fill(~causal, -torch.inf).exp()
    within, since_start = decay[..., :C], decay[..., C:]

    writes = (k_n * within[:, :, -1, :, None]).mT @ v_n
    keep = since_start[:, :, -1:]
    memory = torch.zeros_like(writes[0])
    starts = []
    for n in range(N):
        starts.append(memory)
        memory = keep[n] * memory + writes[n]

    o = (q_n @ k_n.mT * within) @ v_n + since_start * (q_n @ torch.stack(starts))
    o = o.view(N, B, H, C, V).permute(1, 0, 3, 2, 4).reshape(B, T + pad, H, V)[:, :T]
    prior = importance_prior.to(dtype)[:, None]
    variance = state = None
    if output_variance:
        variance = (scale * q.to(dtype)).square().sum(-1, keepdim=True) / prior
        variance = variance.expand(B, T, H, V).to(out_dtype, copy=True)
    if output_final_state:
        importance = prior[..., None].expand(B, H, K, V).clone()
        state = PalimpsaState(memory.view(B, H, K, V) / importance, importance)
    return PalimpsaOutput((o / prior).to(out_dtype).contiguous(), variance, state)
