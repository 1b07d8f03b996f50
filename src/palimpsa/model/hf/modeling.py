"""The language model as transformers uses one: loaded, generated from, trained, evaluated."""

# B batch, T time, D model width, V vocabulary, n positions asked for

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from palimpsa.mixers import MixerCache
from palimpsa.mixers.layers import Decay, ShortConvolution
from palimpsa.mixers.plasticity import Plasticity
from palimpsa.model.build import build_skeleton
from palimpsa.model.embedding import TokenEmbedding
from palimpsa.model.hf.cache import MixerCacheLayer, in_rows, layers_of
from palimpsa.model.hf.configuration import PalimpsaConfig

# Of `generate`, those that hold what a mixer carries. Offloaded, a layer's is on the CPU while others compute.
CACHE_IMPLEMENTATIONS = (None, "dynamic", "offloaded")


class PalimpsaForCausalLM(PreTrainedModel, GenerationMixin):
    """A `LanguageModel`, the attribute `model`, with its logits by `lm_head`, which is tied to the embedding.

    Where the config says that they are not tied, there is no `lm_head`, and logits are by `model.head`.

    In fp32 its logits are the language model's own, bit for bit. Memories are kept in fp32 whatever the weights are in,
    and the few weights of decays and plasticities stay in fp32 where a folder is loaded in half precision.
    """

    config_class = PalimpsaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = True
    _input_embed_layer = "embedding"
    _tied_weights_keys = {"lm_head.weight": "model.embedding.weight"}  # noqa: RUF012
    _no_split_modules = ["Block"]  # noqa: RUF012
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    # bf16 holds three digits of a decay that is 0.9998 a token. These are parts of names.
    _keep_in_fp32_modules_strict = [  # noqa: RUF012
        *("log_rate", "decay.bias", "decay_bias", "importance_prior", "plasticity.scale", "plasticity.logit")
    ]
    # A memory cannot go back, as assisted generation would have it.
    _is_stateful = True

    def __init__(self, config: PalimpsaConfig) -> None:
        super().__init__(config)
        self.model = build_skeleton(config.model_keys())
        # One of another name beside the model's own would be saved twice.
        if config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As transformers', but for weights that are missing, which it would draw at random.

        Raises:
            ValueError: naming the first of them.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, found = loaded
        missing = sorted(found["missing_keys"])
        if missing:
            raise ValueError(
                f"{model.name_or_path}: got no weights for {', '.join(missing[:3])}"
                f"{f' and {len(missing) - 3} more' if len(missing) > 3 else ''}, expected all that its config.json says"
            )
        return (model, found) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draws a new model's weights as `initialise` does, by torch's own generator; loaded ones stay."""
        own = list(module.parameters(recurse=False))
        if not own or any(getattr(weight, "_is_hf_initialized", False) for weight in own):
            return
        std = self.config.d_model**-0.5 if self.config.init_std is None else self.config.init_std
        if isinstance(module, nn.Linear | nn.Embedding):
            init.normal_(module.weight, 0.0, std)
        elif isinstance(module, ShortConvolution | Plasticity | Decay):
            module.reset_parameters()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Another embedding, of another size say."""
        assert isinstance(value, nn.Embedding)
        embedding = TokenEmbedding(1, 1)
        embedding.num_embeddings, embedding.embedding_dim = value.weight.shape
        embedding.weight = value.weight
        self.model.embedding = embedding

    def get_output_embeddings(self) -> nn.Linear:
        """The layer of the logits."""
        return self.lm_head if self.model.head is None else self.model.head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Another one, of another size say."""
        if self.model.head is None:
            self.lm_head = new_embeddings
        else:
            self.model.head = new_embeddings

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are computed again in the backward pass: see `LanguageModel.checkpoint_blocks`."""
        return self.model.checkpoint_blocks

    def _set_gradient_checkpointing(
        self, enable: bool = True, gradient_checkpointing_func: Any = None, every_n_layers: int = 1
    ) -> None:
        options = getattr(gradient_checkpointing_func, "keywords", {})
        if options.get("use_reentrant") or every_n_layers != 1:
            raise ValueError(
                f"gradient_checkpointing_kwargs: got {options} and every_n_layers={every_n_layers}, expected "
                "use_reentrant=False and every layer"
            )
        self.model.checkpoint_blocks = enable

    def generate(self, inputs: Any = None, generation_config: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers', with the caches that hold a memory.

        Raises:
            ValueError: for a `cache_implementation` of another layout, whoever asks for it: static, quantised or paged;
                for `past_key_values` that were not made for this model.
        """
        # As the library settles it: what a given config leaves open is as the model's own has it.
        configs = [config for config in (generation_config, self.generation_config) if config is not None]
        asked = [config.cache_implementation for config in configs if config.cache_implementation is not None]
        wanted = kwargs.get("cache_implementation", asked[0] if asked else None)
        if wanted not in CACHE_IMPLEMENTATIONS:
            raise ValueError(
                f"cache_implementation: got {wanted!r}, expected 'dynamic', which is the default, or 'offloaded': "
                "a memory is of a fixed size, and neither keys and values nor pages of them"
            )
        if kwargs.get("past_key_values") is not None:
            layers_of(kwargs["past_key_values"], self.config.num_layers)
        library: Any = super()
        return library.generate(inputs, generation_config, *args, **kwargs)

    def prepare_inputs_for_generation(
        self,
        *args: Any,
        inputs_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> Any:
        """As transformers', which looks for `inputs_embeds` by name; of what has been generated nothing is padding."""
        # The one that stop strings are looked for with, which the library hands on to the model.
        kwargs.pop("tokenizer", None)
        library: Any = super()
        inputs = library.prepare_inputs_for_generation(
            *args, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and inputs.get("past_key_values") is not None:
            # To look at it would be to wait for the GPU.
            inputs.pop("attention_mask", None)
        return inputs

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: DynamicCache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: int | Tensor | None = None,
    ) -> CausalLMOutputWithPast:
        """Logits of a context, and the loss of its labels.

        Args:
            input_ids: [B, T] int64 in [0, V), or `inputs_embeds` [B, T, D] in their place.
            attention_mask: [B, T], or with a cache [B, S + T], of which the last T count: 0 for padding, which may be
                anywhere. The tokens of a row are read as if they stood side by side.
            past_key_values: `DynamicCache(config=model.config)`, to continue from, brought up to date in place.
            labels: [B, T] int64, `input_ids` themselves: moved by one here, past padding; -100 is no target.
            use_cache: whether to return a cache; None: as the config says, and not in training.
            output_hidden_states: whether to return what each block takes, and the last norm's output.
            output_attentions: no; PEFT names it in every call.
            logits_to_keep: of how many positions at the end, or of which, logits are wanted; 0: all.
            num_items_in_batch: what the sum of the loss is divided by; None: the number of targets.

        Raises:
            ValueError: for inputs of both kinds or of none, a mask of another shape, a cache of another model, or
                where attentions are asked for, of which a memory has none.
        """
        if output_attentions:
            raise ValueError(f"output_attentions: got {output_attentions}, expected False: a memory has no attentions")
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids, inputs_embeds: got both or none, expected one of them")
        x = self.model.embedding(input_ids) if inputs_embeds is None else inputs_embeds
        (B, T), num_layers = x.shape[:2], len(self.model.blocks)
        mask = _mask_of_tokens(attention_mask, B, T)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        layers = [] if past_key_values is None else layers_of(past_key_values, num_layers)
        mixers = list(self.model.mixers()) if layers else []
        caches = [layer.mixer_cache(mixer, B, x.device) for layer, mixer in zip(layers, mixers, strict=True)]
        residuals: list[Tensor] | None = [] if output_hidden_states else None
        if mask is None:
            hidden = self.model.mix(x, caches or None, residuals=residuals)
        else:
            hidden = self._mix_padded(x, mask, caches, residuals)
        for layer, cache, mixer in zip(layers, caches, mixers, strict=True):
            layer.keep(cache, T, grows=mixer.state_growth > 0)
        logits = self.get_output_embeddings()(slice_logits_to_keep(hidden, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.vocab_size,
                num_items_in_batch=num_items_in_batch,
                shift_labels=None if mask is None else _next_in_rows(labels, mask),
            )
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values if use_cache else None,
            hidden_states=None if residuals is None else (*residuals, hidden),
        )

    def _mix_padded(self, x: Tensor, mask: Tensor, caches: list[MixerCache], residuals: list[Tensor] | None) -> Tensor:
        """[B, T, D] of embeddings x [B, T, D]: what comes before a token reaches it, and padding nothing."""
        order, inverse = in_rows(mask)
        for cache in caches:
            cache.num_new = mask.sum(1).to(cache.state[0].device)
        hidden = self.model.mix(_permuted(x, order), caches or None, residuals=residuals)
        if residuals is not None:
            residuals[:] = [_permuted(residual, inverse) for residual in residuals]
        return _permuted(hidden, inverse)


def _permuted(x: Tensor, order: Tensor) -> Tensor:
    """[B, T, D] of x [B, T, D] in another order of time, [B, T]."""
    return x.gather(1, order.to(x.device)[..., None].expand_as(x))


def _next_in_rows(labels: Tensor, mask: Tensor) -> Tensor:
    """[B, T] of labels [B, T]: that of what comes next in its row; -100 behind the last.

    Padding at the left of a row has read the whole of it: it must not be asked for the first token.
    """
    order, inverse = (x.to(labels.device) for x in in_rows(mask))
    behind = torch.full_like(labels[:, :1], -100)
    return torch.cat([labels.gather(1, order)[:, 1:], behind], dim=1).gather(1, inverse)


def _mask_of_tokens(attention_mask: Tensor | None, B: int, T: int) -> Tensor | None:
    """[B, T] bool, which are tokens; None where all are. Raises ValueError for another shape."""
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[0] != B or attention_mask.shape[1] < T:
        raise ValueError(f"attention_mask: got {list(attention_mask.shape)}, expected [{B}, {T}], or more columns")
    mask = attention_mask[:, -T:] != 0
    return None if bool(mask.all()) else mask


__all__ = ["MixerCacheLayer", "PalimpsaForCausalLM"]
