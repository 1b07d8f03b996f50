"""One residual stack for every mixer."""

# B batch, T time, D model width, V vocabulary, n positions asked for

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from palimpsa.mixers import MemoryTrace, Mixer, MixerCache
from palimpsa.mixers.layers import ShortConvolution
from palimpsa.mixers.parameters import initialise
from palimpsa.model.embedding import TokenEmbedding

NORMS = ("layernorm", "rmsnorm")
CHANNEL_MIXERS = ("none", "swiglu")


def make_norm(kind: str, width: int, eps: float, name: str = "norm") -> nn.Module:
    """A norm over the last axis: "layernorm" or "rmsnorm"; ValueError, by the argument's `name`, for another."""
    if kind not in NORMS:
        raise ValueError(f"{name}: got {kind!r}, expected one of {', '.join(NORMS)}")
    return nn.LayerNorm(width, eps) if kind == "layernorm" else nn.RMSNorm(width, eps)


class SwiGLU(nn.Module):
    """W_down (silu(W_gate x) * W_up x), [B, T, D] -> [B, T, D]."""

    def __init__(self, d_model: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(d_model, width, bias=False)
        self.up_proj = nn.Linear(d_model, width, bias=False)
        self.down_proj = nn.Linear(width, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """x + mixer(norm(x)), then, where there is a channel mixer, x + channel_mixer(norm(x))."""

    def __init__(self, mixer: Mixer, norm: str, norm_eps: float, channel_mixer: nn.Module | None) -> None:
        super().__init__()
        self.mixer_norm = make_norm(norm, mixer.d_model, norm_eps)
        self.mixer = mixer
        self.channel_mixer = channel_mixer
        self.channel_norm = None if channel_mixer is None else make_norm(norm, mixer.d_model, norm_eps)

    def forward(self, x: Tensor, cache: MixerCache | None = None, cu_seqlens: Tensor | None = None) -> Tensor:
        x = x + self.mixer(self.mixer_norm(x), cache, cu_seqlens)
        if self.channel_mixer is not None and self.channel_norm is not None:
            x = x + self.channel_mixer(self.channel_norm(x))
        return x

    def memory(self, x: Tensor) -> MemoryTrace:
        """What the mixer's memory did with x [B, T, D]."""
        return self.mixer.memory(self.mixer_norm(x))


class LanguageModel(nn.Module):
    """Embedding, blocks, norm, and logits by the tied embedding, or by a head of their own.

    Args:
        vocab_size: V.
        d_model: D.
        num_layers: number of blocks.
        make_mixer: called once a layer with d_model.
        norm: "layernorm" or "rmsnorm", before every mixer and at the end.
        final_norm: the one at the end, where it is another; None: as `norm`.
        norm_eps: its epsilon.
        channel_mixer: "none" or "swiglu".
        channel_width: hidden width of the SwiGLU.
        init_std: standard deviation of every matrix and of the embedding; None: D^-1/2.
        tie_word_embeddings: whether the embedding is the matrix of the logits too; False: `head` is, [V, D].
        generator: the randomness of the initial weights; None leaves them for a checkpoint to fill.

    Attributes:
        checkpoint_blocks: keep of every block its input alone, and compute the rest again in the backward pass: less
            memory, a third more time, the same numbers. Where there are no gradients, or caches, nothing changes.

    Raises:
        ValueError: for sizes below 1 or unknown names.
    """

    checkpoint_blocks = False

    def __init__(
        self,
        vocab_size: int,
        d_model: int,
        num_layers: int,
        make_mixer: Callable[..., Mixer],
        *,
        norm: str = "rmsnorm",
        norm_eps: float = 1e-6,
        channel_mixer: str = "none",
        channel_width: int | None = None,
        init_std: float | None = None,
        tie_word_embeddings: bool = True,
        final_norm: str | None = None,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        for name, value in {"vocab_size": vocab_size, "d_model": d_model, "num_layers": num_layers}.items():
            if value < 1:
                raise ValueError(f"{name}: got {value}, expected >= 1")
        if channel_mixer not in CHANNEL_MIXERS:
            raise ValueError(f"channel_mixer: got {channel_mixer!r}, expected one of {', '.join(CHANNEL_MIXERS)}")
        if channel_mixer != "none" and (channel_width is None or channel_width < 1):
            raise ValueError(f"channel_width: got {channel_width}, expected >= 1 with channel_mixer={channel_mixer}")
        if channel_mixer == "none" and channel_width is not None:
            raise ValueError(f"channel_width: got {channel_width}, expected null with channel_mixer=none")
        self.embedding = TokenEmbedding(vocab_size, d_model)
        self.blocks = nn.ModuleList(
            Block(
                make_mixer(d_model=d_model),
                norm,
                norm_eps,
                SwiGLU(d_model, channel_width) if channel_mixer == "swiglu" and channel_width else None,
            )
            for _ in range(num_layers)
        )
        self.norm = make_norm(norm if final_norm is None else final_norm, d_model, norm_eps, "final_norm")
        self.head = None if tie_word_embeddings else nn.Linear(d_model, vocab_size, bias=False)
        if generator is not None:
            initialise(self, d_model**-0.5 if init_std is None else init_std, generator)

    def hidden(
        self, tokens: Tensor, caches: list[MixerCache] | None = None, cu_seqlens: Tensor | None = None
    ) -> Tensor:
        """tokens [B, T] int64 -> normalised hidden states [B, T, D]."""
        return self.mix(self.embedding(tokens), caches, cu_seqlens)

    def mix(
        self,
        x: Tensor,
        caches: list[MixerCache] | None = None,
        cu_seqlens: Tensor | None = None,
        residuals: list[Tensor] | None = None,
    ) -> Tensor:
        """Embeddings x [B, T, D] -> normalised hidden states [B, T, D].

        Args:
            residuals: what each block takes is appended to it; None: nobody asks.
        """
        # A block that is computed again would bring its cache up to date twice.
        checkpointed = self.checkpoint_blocks and caches is None and torch.is_grad_enabled()
        for i, block in enumerate(self.blocks):
            if residuals is not None:
                residuals.append(x)
            if checkpointed:
                # No block draws random numbers, whose state would be copied from the GPU.
                x = checkpoint(block, x, None, cu_seqlens, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, None if caches is None else caches[i], cu_seqlens)
        return self.normalise(x)

    def normalise(self, x: Tensor) -> Tensor:
        """The last norm."""
        return self.norm(x)

    @property
    def output_weight(self) -> Tensor:
        """[V, D]: the matrix of the logits."""
        return self.embedding.weight if self.head is None else self.head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V] by `output_weight`."""
        return F.linear(hidden, self.output_weight)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        caches: list[MixerCache] | None = None,
        cu_seqlens: Tensor | None = None,
    ) -> Tensor:
        """Logits of a context.

        Args:
            tokens: [B, T] int64 in [0, V).
            positions: [B, n] int64 in [0, T): compute logits there only; None: everywhere.
            caches: from `new_caches`: continue from them and bring them up to date.
            cu_seqlens: [N+1] boundaries of sequences packed into one row (B = 1).

        Returns:
            [B, n, V] or [B, T, V].
        """
        hidden = self.hidden(tokens, caches, cu_seqlens)
        if positions is not None:
            hidden = hidden.gather(1, positions[..., None].expand(-1, -1, hidden.shape[-1]))
        return self.logits(hidden)

    def new_caches(self, batch_size: int) -> list[MixerCache]:
        """One empty cache a layer, for `batch_size` sequences."""
        return [mixer.new_cache(batch_size) for mixer in self.mixers()]

    @torch.no_grad()
    def step(self, tokens: Tensor, caches: list[MixerCache]) -> Tensor:
        """Decodes one token: tokens [B] int64 -> logits [B, V]; updates `caches` in place."""
        return self.forward(tokens[:, None], caches=caches)[:, 0]

    @torch.no_grad()
    def memory(self, tokens: Tensor) -> list[MemoryTrace]:
        """What each layer's memory did with the context tokens [B, T]."""
        traces, x = [], self.embedding(tokens)
        for block in self._blocks():
            traces.append(block.memory(x))
            x = block(x)
        return traces

    def mixers(self) -> Iterator[Mixer]:
        """The mixers from the first layer to the last."""
        for block in self._blocks():
            yield block.mixer

    def _blocks(self) -> Iterator[Block]:
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block

    @property
    def state_size(self) -> int:
        """Recurrent memory of one sequence in one layer, in numbers (every layer has the same mixer)."""
        return next(self.mixers()).state_size

    def flops_per_token(self, context: int) -> int:
        """Floating-point operations of the forward pass of one token, its logits included.

        A multiply-add is two. Matrices, convolutions and memories count; norms, gates and activations are left out.

        Args:
            context: tokens of the context: see `Mixer.memory_flops`.
        """
        layers = [m.weight for m in self.blocks.modules() if isinstance(m, nn.Linear | ShortConvolution)]
        matrices = sum(weight.numel() for weight in [*layers, self.output_weight])
        return 2 * matrices + sum(mixer.memory_flops(context) for mixer in self.mixers())

    def training_flops_per_token(self, context: int) -> int:
        """Floating-point operations that training on one token needs: three times the forward pass.

        The backward pass computes two products for each one of the forward pass. What is computed a second time
        (`checkpoint_blocks`, the chunked memories' own recomputation) does not count: MFU = these times tokens a second
        / the device's peak is of what the model needs, whatever the implementation does.

        Args:
            context: see `flops_per_token`.
        """
        return 3 * self.flops_per_token(context)

    @property
    def num_parameters(self) -> int:
        """Trained parameters; the tied embedding counts once."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)
