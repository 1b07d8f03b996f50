"""The backward pass for precisions that serve 16 rows and more, in Triton.

kernels/README.md has the equations and what it costs.
"""

# Triton's decorator hides the signatures of kernels, and that of its helpers for both worlds, from a type checker.
# pyright: reportCallIssue=false, reportArgumentType=false, reportReturnType=false, reportGeneralTypeIssues=false
# pyright: reportAssignmentType=false, reportAttributeAccessIssue=false

# B batch, T time, H heads, K key dim, V value dim, G groups, R = V / G rows a group, N sequences, C chunk size
# M = I * mu, J = I - I_prior, p = scale * q / I: the query of a group
# A flow is the gradient that reaches M or J of the last token of a chunk from all tokens after it.
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..groups import repeat_for_rows, sum_over_rows
from .backward import Gradients
from .compilation import compile_once, launch, rehearsals
from .grouped import (
    CHUNK,
    OF_CALL,
    Call,
    Plan,
    Prepared,
    accumulate,
    accumulate_flows,
    carry,
    carry_J,
    chunk_importance,
    cut_kept,
    decays_between,
    load_decays,
    make_call,
    precise_product,
    product,
    sum_chunks,
)
from .primitives import HAS_PTX, SCALARS, aligned, cdiv, locate, reciprocal


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _query_gradients_kernel(
    q, k, v, beta, prior, do, dvar, decays, states, J_states, dq, queries, dk_from_J, dbeta_sum, J_flows, terms,
    own_sums, cu_seqlens, offsets, sequence_of, num_tokens_all, T, H, first_head, num_heads, chunks_each, num_chunks,
    scale,
    K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr,
    STAGES: tl.constexpr, HAS_DVAR: tl.constexpr, IS_PACKED: tl.constexpr, MODE: tl.constexpr, HAS_BF16: tl.constexpr,
    HAS_PTX: tl.constexpr,
):  # fmt: skip
    """dq of one chunk, head and tile of keys, and what dk, dbeta and dg get through the importances of this chunk.

    Also the queries p, and what the chunk's tokens add to the flow of J before it: gradients of I, decayed.
    """
    R: tl.constexpr = V // G
    tiles_k: tl.constexpr = (K + KT - 1) // KT
    chunk, tile_k = tl.program_id(0) // tiles_k, tl.program_id(0) % tiles_k
    local_head = tl.program_id(1)
    h = first_head + local_head
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    if num_tokens > 0:
        tt, kk = tl.arange(0, C), tile_k * KT + tl.arange(0, KT)
        in_t, in_k = tt < num_tokens, kk < K
        mask = in_t[:, None] & in_k[None, :]
        row = start * H + h
        at = row * K + tt[:, None] * (H * K) + kk[None, :]
        state = chunk.to(tl.int64) * num_heads + local_head
        own_row = start * num_heads + local_head
        prior_h = tl.load(prior + h).to(tl.float32)
        high, low, _high_end, _low_end = load_decays(decays, h, H, num_tokens_all, start, num_tokens, C)
        passed = tl.exp2(high)
        dq_t = tl.zeros([C, KT], tl.float32)
        dk_t = tl.zeros([C, KT], tl.float32)
        terms_t = tl.zeros([C], tl.float32)
        own_sum = 0.0
        for j in range(G):
            # The gradient of the group's query: through the scores, before decay, and through the state.
            d_scores = tl.zeros([C, C], tl.float32)
            dp_t = tl.zeros([C, KT], tl.float32)
            spreads = tl.zeros([C, VT], tl.float32)
            for r0 in tl.range(0, R, VT, num_stages=STAGES):
                rr = r0 + tl.arange(0, VT)
                in_v = rr < R
                vv = j * R + rr
                at_v = row * V + tt[:, None] * (H * V) + vv[None, :]
                in_v_t = in_t[:, None] & in_v[None, :]
                v_t = tl.load(v + at_v, mask=in_v_t, other=0.0)
                do_t = tl.load(do + at_v, mask=in_v_t, other=0.0)
                at_state = state * (K * V) + kk[:, None] * V + vv[None, :]
                M = tl.load(states + at_state, mask=in_k[:, None] & in_v[None, :], other=0.0)
                d_scores = product(do_t, tl.trans(v_t), d_scores, MODE, HAS_BF16)
                dp_t = product(do_t, tl.trans(M), dp_t, MODE, HAS_BF16)
                if HAS_DVAR:
                    spreads += tl.load(dvar + at_v, mask=in_v_t, other=0.0).to(tl.float32)
            k_t = tl.load(k + at, mask=mask, other=0.0)
            q_t = tl.load(q + at, mask=mask, other=0.0).to(tl.float32) * scale
            until = decays_between(high, low, False, C, MODE, HAS_PTX)
            dp_t = precise_product(d_scores * until, k_t, dp_t * passed[:, None], MODE, HAS_BF16)
            key = k_t.to(tl.float32)
            beta_t = tl.load(beta + (row + tt * H) * G + j, mask=in_t, other=0.0).to(tl.float32)
            importance = chunk_importance(
                key,
                beta_t,
                J_states,
                (chunk.to(tl.int64) * H + h) * G + j,
                kk,
                until,
                passed,
                prior_h,
                K,
                MODE,
                HAS_BF16,
            )
            inverse = reciprocal(importance, HAS_PTX)
            p_t = q_t * inverse
            at_p = (own_row * G + j) * K + tt[:, None] * (num_heads * G * K) + kk[None, :]
            tl.store(queries + at_p, p_t.to(queries.dtype.element_ty), mask=mask)
            own = -dp_t * p_t * inverse
            dq_t += dp_t * inverse
            if HAS_DVAR:
                # Not before: Triton 3.7.1 fails on a sum over rows within the loop, in float32.
                spread = tl.sum(spreads, 1)
                own -= p_t * p_t * spread[:, None]
                dq_t += 2.0 * p_t * spread[:, None]
                terms_t -= tl.sum(q_t * p_t, 1) * spread
            own_t = tl.sum(own, 1)
            terms_t -= prior_h * own_t
            own_sum += tl.sum(own_t, 0)
            tl.store(J_flows + (state * G + j) * K + kk, tl.sum(own * passed[:, None], 0), mask=in_k)
            # The gradient of J from the tokens of this chunk.
            since = decays_between(high, low, True, C, MODE, HAS_PTX)
            dJ = precise_product(since, own, tl.zeros([C, KT], tl.float32), MODE, HAS_BF16)
            at_beta = tile_k * tl.cast(num_tokens_all, tl.int64) * (num_heads * G) + own_row * G + j
            tl.store(dbeta_sum + at_beta + tt * (num_heads * G), tl.sum(key * key * dJ, 1), mask=in_t)
            dk_t += 2.0 * key * (dJ * beta_t[:, None])
        tl.store(dq + at, dq_t * scale, mask=mask)
        tl.store(dk_from_J + own_row * K + tt[:, None] * (num_heads * K) + kk[None, :], dk_t, mask=mask)
        at_term = (tile_k * num_heads + local_head) * tl.cast(num_tokens_all, tl.int64) + start + tt
        tl.store(terms + at_term, terms_t, mask=in_t)
        tl.store(own_sums + tile_k * tl.cast(num_chunks, tl.int64) * num_heads + state, own_sum)


@triton.jit(do_not_specialize=OF_CALL, do_not_specialize_on_alignment=SCALARS)
def _key_gradients_kernel(
    queries, k, v, beta, do, decays, J_states, flows, products, J_flows, dk_from_J, dbeta_sum, terms,
    dk, dv, dbeta, dg, cu_seqlens, offsets, sequence_of,
    num_tokens_all, T, H, first_head, num_heads, chunks_each, num_chunks, num_products,
    K: tl.constexpr, V: tl.constexpr, G: tl.constexpr, KT: tl.constexpr, VT: tl.constexpr, C: tl.constexpr,
    STAGES: tl.constexpr, IS_PACKED: tl.constexpr, MODE: tl.constexpr, HAS_BF16: tl.constexpr, HAS_PTX: tl.constexpr,
):  # fmt: skip
    """dk, dv, dbeta and dg of one chunk and head, with the flows of M and J."""
    R: tl.constexpr = V // G
    TILES: tl.constexpr = (K + KT - 1) // KT
    chunk, local_head = tl.program_id(0), tl.program_id(1)
    h = first_head + local_head
    _, _, start, num_tokens = locate(chunk, T, chunks_each, cu_seqlens, offsets, sequence_of, C, IS_PACKED)
    if num_tokens > 0:
        tt = tl.arange(0, C)
        in_t = tt < num_tokens
        row = start * H + h
        own_row = start * num_heads + local_head
        state = chunk.to(tl.int64) * num_heads + local_head
        all_tokens = tl.cast(num_tokens_all, tl.int64)
        high, low, high_end, low_end = load_decays(decays, h, H, num_tokens_all, start, num_tokens, C)
        until_end, whole = tl.exp2((high_end - high) + (low_end - low)), tl.exp2(high_end)
        term = tl.zeros([C], tl.float32)
        # What the gradient of the last log decay is: <flow, state after the chunk>, for M and for J.
        anchor = 0.0
        for i in range(num_products):
            anchor += tl.load(products + i * tl.cast(num_chunks, tl.int64) * num_heads + state)
        keys, dks = (), ()
        for tile in tl.static_range(TILES):
            kk = tile * KT + tl.arange(0, KT)
            mask = in_t[:, None] & (kk < K)[None, :]
            keys = keys + (tl.load(k + row * K + tt[:, None] * (H * K) + kk[None, :], mask=mask, other=0.0),)
            at_own = own_row * K + tt[:, None] * (num_heads * K) + kk[None, :]
            dks = dks + (tl.load(dk_from_J + at_own, mask=mask, other=0.0),)
            term += tl.load(terms + (tile * num_heads + local_head) * all_tokens + start + tt, mask=in_t, other=0.0)
        for j in range(G):
            at_p = queries + (own_row * G + j) * K
            p_step = num_heads * G * K
            scores = tl.zeros([C, C], tl.float32)
            laters = ()
            for tile in tl.static_range(TILES):
                kk = tile * KT + tl.arange(0, KT)
                mask = (kk < K)[:, None] & in_t[None, :]
                p_t = tl.load(at_p + tt[None, :] * p_step + kk[:, None], mask=mask, other=0.0)
                scores = precise_product(keys[tile], p_t, scores, MODE, HAS_BF16)
                laters = laters + (tl.zeros([C, KT], tl.float32),)
            since = decays_between(high, low, True, C, MODE, HAS_PTX)
            scores = scores * since
            d_scores = tl.zeros([C, C], tl.float32)
            for r0 in tl.range(0, R, VT, num_stages=STAGES):
                rr = r0 + tl.arange(0, VT)
                in_v = rr < R
                vv = j * R + rr
                at_v = row * V + tt[:, None] * (H * V) + vv[None, :]
                in_v_t = in_t[:, None] & in_v[None, :]
                v_t = tl.load(v + at_v, mask=in_v_t, other=0.0)
                do_t = tl.load(do + at_v, mask=in_v_t, other=0.0)
                d_scores = product(v_t, tl.trans(do_t), d_scores, MODE, HAS_BF16)
                dv_t = tl.zeros([C, VT], tl.float32)
                new_laters = ()
                for tile in tl.static_range(TILES):
                    kk = tile * KT + tl.arange(0, KT)
                    at_state = state * (K * V) + kk[:, None] * V + vv[None, :]
                    in_tile = (kk < K)[:, None] & in_v[None, :]
                    flow = tl.load(flows + at_state, mask=in_tile, other=0.0)
                    dv_t = product(keys[tile], flow, dv_t, MODE, HAS_BF16)
                    new_laters = new_laters + (product(v_t, tl.trans(flow), laters[tile], MODE, HAS_BF16),)
                laters = new_laters
                # A score may be most of a gradient: rounded to 8 bits it would be as wrong as that may be.
                dv_t = precise_product(scores, do_t, dv_t * until_end[:, None], MODE, HAS_BF16)
                tl.store(dv + at_v, dv_t.to(dv.dtype.element_ty), mask=in_v_t)
                term -= tl.sum(v_t.to(tl.float32) * dv_t, 1)
            d_scores = d_scores * since
            beta_t = tl.load(beta + (row + tt * H) * G + j, mask=in_t, other=0.0).to(tl.float32)
            later = tl.zeros([C], tl.float32)
            dbeta_t = tl.zeros([C], tl.float32)
            new_dks = ()
            for tile in tl.static_range(TILES):
                kk = tile * KT + tl.arange(0, KT)
                in_k = kk < K
                mask = in_t[:, None] & in_k[None, :]
                p_t = tl.load(at_p + tt[:, None] * p_step + kk[None, :], mask=mask, other=0.0)
                flow = tl.load(J_flows + (state * G + j) * K + kk, mask=in_k, other=0.0)
                at_J = ((chunk.to(tl.int64) * H + h) * G + j) * K + kk
                J = tl.load(J_states + at_J, mask=in_k, other=0.0)
                key = keys[tile].to(tl.float32)
                from_flow = laters[tile] * until_end[:, None]
                anchor += whole * tl.sum(flow * J, 0)
                later += tl.sum(key * key * flow[None, :], 1)
                from_flow += 2.0 * key * ((beta_t * until_end)[:, None] * flow[None, :])
                dk_t = precise_product(d_scores, p_t, dks[tile] + from_flow, MODE, HAS_BF16)
                new_dks = new_dks + (dk_t,)
                at_beta = tile * all_tokens * (num_heads * G) + own_row * G + j
                dbeta_t += tl.load(dbeta_sum + at_beta + tt * (num_heads * G), mask=in_t, other=0.0)
            dks = new_dks
            later *= until_end
            anchor += tl.sum(beta_t * later, 0)
            dbeta_t += later
            term -= beta_t * dbeta_t
            tl.store(dbeta + (row + tt * H) * G + j, dbeta_t, mask=in_t)
        for tile in tl.static_range(TILES):
            kk = tile * KT + tl.arange(0, KT)
            at = row * K + tt[:, None] * (H * K) + kk[None, :]
            tl.store(dk + at, dks[tile], mask=in_t[:, None] & (kk < K)[None, :])
        # The gradient of a log decay is a sum over what comes after it: README.md.
        tl.store(dg + row + tt * H, anchor + tl.cumsum(term, 0, reverse=True), mask=in_t)


def _differentiate_heads(
    call: Call,
    plan: Plan,
    heads: tuple[int, int],
    prepared: Prepared,
    do: Tensor,
    dvar: Tensor | None,
    last: tuple[Tensor, Tensor, Tensor] | None,
    first: tuple[Tensor, Tensor] | None,
    results: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
) -> Tensor:
    """Writes dq, dk, dv, dbeta and dg of some heads into `results`, and the flows that reach the start into `first`.

    Args:
        last: the flows of M and J after every sequence, and M there.

    Returns the sum over time and keys of the gradients of I, [num_heads].
    """
    dq, dk, dv, dbeta, dg = results
    q, k, v, beta = call.q, call.k, call.v, call.beta
    _, T, H, K, V, G = call.sizes
    chunks, num_tokens = call.chunks, call.num_tokens
    float32 = {"dtype": torch.float32, "device": q.device}
    tiles_k = cdiv(K, plan.KT)
    num_heads = heads[1]
    J_states, decays, chunk_decay = prepared
    states = accumulate(call, plan, heads, decays, None)
    queries = torch.empty(num_tokens, num_heads, G, K, **float32)
    dk_from_J = torch.empty(num_tokens, num_heads, K, **float32)
    dbeta_sum = torch.empty(tiles_k, num_tokens, num_heads, G, **float32)
    J_flows = torch.empty(chunks.count, num_heads, G, K, **float32)
    terms = torch.empty(tiles_k, num_heads, num_tokens, **float32)
    own_sums = call.of_chunks(tiles_k, num_heads)
    where = (*call.places, num_tokens, T, H, *heads, chunks.each, chunks.count)
    sizes = (K, V, G, plan.KT, plan.VT, CHUNK, plan.stages)
    # The stages are of the loop over rows, and of that over groups where rows of one fit a tile.
    options = {"num_warps": plan.num_warps, "num_stages": plan.stages, **call.options}
    launch(
        _query_gradients_kernel, (chunks.count * tiles_k, num_heads),
        q, k, v, beta, call.prior, do, do if dvar is None else dvar, decays, states, J_states,
        dq, queries, dk_from_J, dbeta_sum, J_flows, terms, own_sums, *where, call.scale, *sizes,
        HAS_DVAR=dvar is not None, HAS_PTX=HAS_PTX, **options,
    )  # fmt: skip
    carry(
        call,
        heads,
        chunk_decay,
        J_flows,
        None if last is None else last[1],
        None if first is None else first[1],
        reverse=True,
    )
    flows, products = accumulate_flows(
        call, plan, heads, decays, queries, do, states, None if last is None else (last[0], last[2]),
        None if first is None else first[0],
    )  # fmt: skip
    launch(
        _key_gradients_kernel, (chunks.count, num_heads),
        queries, k, v, beta, do, decays, J_states, flows, products, J_flows, dk_from_J, dbeta_sum, terms,
        dk, dv, dbeta, dg, *where, len(products), *sizes, HAS_PTX=HAS_PTX, **options,
    )  # fmt: skip
    return own_sums.sum((0, 1))


def backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    importance_prior: Tensor,
    scale: float,
    mean0: Tensor | None,
    importance0: Tensor | None,
    mean: Tensor | None,
    importance: Tensor | None,
    cu_seqlens: Tensor | None,
    kept: Tensor,
    do: Tensor,
    dvar: Tensor | None,
    dmean: Tensor | None,
    dimportance: Tensor | None,
) -> Gradients:
    """`backward` of backward.py for beta [B, T, H, G] and importances [N, H, K, G].

    Args:
        kept: the last result of `forward`; what is empty is computed again.
    """
    call = make_call(q, k, v, beta, g, importance_prior, scale, mean0, importance0, cu_seqlens)
    _, _, H, K, V, G = call.sizes
    if not q.is_meta:

        def rehearse() -> None:
            # Calls of all sizes launch the same.
            size = next(rehearsals(q, cu_seqlens, is_large=False))
            states = [size.state(x) for x in (mean0, importance0, mean, importance)]
            flows = [size.sequence(do), size.sequence(dvar), size.state(dmean), size.state(dimportance)]
            tensors = [size.sequence(x) for x in (q, k, v, beta, g)]
            backward(
                *tensors,
                size.prior(importance_prior),
                scale,
                *states,
                size.bounds(cu_seqlens),
                kept.new_empty(0, device="meta"),
                *flows,
            )

        compile_once(("grouped backward", *call.mode, dvar is None), rehearse)
    dq, dk, dv, dbeta, dg = (torch.empty_like(x) for x in (q, k, v, beta, g))
    last = first = None
    if call.sequences.M_start is not None:
        first = (g.new_empty(call.sequences.num, H, K, V), g.new_empty(call.sequences.num, H, K, G))
    if dmean is not None and dimportance is not None and mean is not None and importance is not None:
        of_rows = repeat_for_rows(importance, V)
        flow = dmean.float() / of_rows
        last = (flow, dimportance.float() - sum_over_rows(flow * mean, G), mean * of_rows)
    do, dvar = aligned(do), None if dvar is None else aligned(dvar)
    own_sums = []
    plan = call.plan(with_gradients=True)
    if kept.numel():
        prepared = cut_kept(call, kept)
    else:
        prepared, _ = sum_chunks(call)
        carry_J(call, prepared, None)
    for heads in plan.head_slices:
        results = dq, dk, dv, dbeta, dg
        own_sums.append(_differentiate_heads(call, plan, heads, prepared, do, dvar, last, first, results))

    # What forgetting gives back of the prior, over all tokens, telescopes: README.md.
    dprior = own_sums[0] if len(own_sums) == 1 else torch.cat(own_sums)
    if last is not None:
        dprior = dprior + last[1].sum((0, 2, 3))
    dmean0 = dimportance0 = None
    if mean0 is not None and importance0 is not None and first is not None:
        dM, dJ = first
        dprior = dprior - dJ.sum((0, 2, 3))
        dmean0 = (repeat_for_rows(importance0, V) * dM).to(mean0.dtype)
        dimportance0 = (dJ + sum_over_rows(mean0 * dM, G)).to(importance0.dtype)
    return Gradients(dq, dk, dv, dbeta, dg, dprior.to(importance_prior.dtype), dmean0, dimportance0)
