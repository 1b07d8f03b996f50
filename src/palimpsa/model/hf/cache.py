"""What a mixer carries from token to token, as a layer of transformers' own cache."""

# B batch, T new tokens, S all tokens so far, C channels, W convolution width

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer

from palimpsa.mixers import Mixer, MixerCache

# Of a mixer, convolutions or states: q, k and v have one each.
MAX_STATES = 3
# By which transformers finds the class below.
LAYER_TYPE = "palimpsa"


class MixerCacheLayer(LinearAttentionAndFullAttentionLayer):
    """One layer of `DynamicCache(config=model.config)`, of whatever mixer.

    Where transformers looks for it: short convolutions' inputs [B, C, W-1] in `conv_states`, a recurrent mixer's states
    (mean and importance, say) in `recurrent_states`, attention's keys and values in `keys` and `values`, with the
    lengths of its sequences, [B] int64, among the recurrent states once they are not all the same. They are the mixer's
    own tensors, which it brings up to date in place, and are of a fixed size but for attention's.

    A reset lets go of them: the importance before the first token is its prior, and not zero.
    """

    _layer_type = LAYER_TYPE
    # The length is counted by hand, and no mask of four dimensions is to be made.
    is_compileable = False
    supports_early_init = False

    def __init__(self) -> None:
        super().__init__(number_of_states=MAX_STATES)
        self.num_tokens = 0

    @property
    def grows(self) -> bool:
        """Whether it holds keys and values, which attention's does from the first token on."""
        return self.keys is not None

    @property
    def is_croppable(self) -> bool:
        """No: see `crop`."""
        return False

    def mixer_cache(self, mixer: Mixer, batch_size: int, device: torch.device) -> MixerCache:
        """The cache to continue from, whose tensors are this layer's own.

        Args:
            device: where a mixer computes whose weights are not in memory.

        Raises:
            ValueError: for a batch of another size than the last one.
        """
        if self.num_tokens == 0:
            cache = mixer.new_cache(batch_size)
            conv, state = ([_in_memory(x, device) for x in kept] for kept in (cache.conv, cache.state))
            return MixerCache(conv, tuple(state))
        state = [x for x in (self.keys, self.values) if x is not None]
        conv, recurrent = ([x for x in kept.values() if x is not None] for kept in self._kept())
        known = (*state, *recurrent)[0].shape[0]
        if known != batch_size:
            raise ValueError(f"past_key_values: got a cache of {known} sequences, expected one of {batch_size}")
        return MixerCache(conv, (*state, *recurrent))

    def keep(self, cache: MixerCache, num_tokens: int, *, grows: bool) -> None:
        """Takes up what a cache has become.

        Args:
            num_tokens: T, the columns of the batch that it has seen, padding included.
            grows: whether the first two states are keys and values.
        """
        self.num_tokens += num_tokens
        states = list(cache.state)
        if grows:
            self.keys, self.values = states[:2]
            states = states[2:]
        for kept, flags, found in zip(
            self._kept(),
            (self.is_conv_states_initialized, self.is_recurrent_states_initialized),
            (cache.conv, states),
            strict=True,
        ):
            for i, x in enumerate(found):
                kept[i], flags[i] = x, True
        self.has_previous_state = dict.fromkeys(self.has_previous_state, True)
        self.dtype, self.device = cache.state[0].dtype, cache.state[0].device

    def _kept(self) -> tuple[dict[int, Tensor | None], dict[int, Tensor | None]]:
        return self.conv_states, self.recurrent_states

    def _map(self, select: Callable[[Tensor], Tensor]) -> None:
        """Puts select(x) in the place of each tensor x."""
        for kept in self._kept():
            for i, x in kept.items():
                kept[i] = None if x is None else select(x)
        if self.keys is not None and self.values is not None:
            self.keys, self.values = select(self.keys), select(self.values)

    def get_seq_length(self) -> int:
        """Columns seen so far, padding included: as many as a mask over all of them has."""
        return self.num_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.num_tokens + query_length, 0

    def reset(self) -> None:
        self.__init__()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._map(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._map(lambda x: x.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._map(lambda x: x[indices.to(x.device)])

    def crop(self, tokens_to_remove: int) -> None:
        """Raises NotImplementedError but for 0 tokens: a memory of a fixed size does not know what it was."""
        if tokens_to_remove:
            raise NotImplementedError(f"crop: got {tokens_to_remove} tokens, expected 0: a memory cannot go back")

    def offload(self) -> None:
        self._map(lambda x: x.to("cpu", non_blocking=True))

    def prefetch(self) -> None:
        self._map(lambda x: x.to(self.device, non_blocking=True))


def _in_memory(x: Tensor, device: torch.device) -> Tensor:
    """x, or zeros where it was made of weights that are on the disk."""
    return torch.zeros_like(x, device=device) if x.is_meta else x


def layers_of(cache: DynamicCache, num_layers: int) -> list[MixerCacheLayer]:
    """The layers of a cache.

    Raises:
        ValueError: for a cache that was not made for such a model.
    """
    held = getattr(cache, "layers", [])
    layers = [layer for layer in held if isinstance(layer, MixerCacheLayer)]
    if not isinstance(cache, DynamicCache) or len(layers) != num_layers or len(held) != num_layers:
        found = sorted({type(layer).__name__ for layer in held}) or ["no layers"]
        raise ValueError(
            f"past_key_values: got {type(cache).__name__} with {len(held)} of {', '.join(found)}, expected "
            f"DynamicCache(config=model.config), {num_layers} of {MixerCacheLayer.__name__}"
        )
    return layers


def in_rows(mask: Tensor) -> tuple[Tensor, Tensor]:
    """How tokens come to stand at the left of their rows, and how they go back.

    Args:
        mask: [B, T] bool: which are tokens; the others are padding, wherever it is.

    Returns:
        order and its inverse, [B, T] int64: x.gather(1, order) has each row's tokens first, in their order.
    """
    order = mask.long().argsort(dim=1, descending=True, stable=True)
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(order)
    return order, torch.empty_like(order).scatter_(1, order, places)
