"""The config of a language model, as transformers keeps it in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from palimpsa.config.checks import check_ranges
from palimpsa.config.errors import ConfigError
from palimpsa.config.keys import MAX_COUNT, convert
from palimpsa.config.schema import ModelConfig
from palimpsa.model.build import SKELETON_KEYS, check_model, skeleton_keys
from palimpsa.model.hf.cache import LAYER_TYPE

DEFAULT_MIXER = {"_target_": "palimpsa.mixers.PalimpsaD", "num_heads": 16, "head_k_dim": 48, "head_v_dim": 96}


@strict
class PalimpsaConfig(PreTrainedConfig):
    r"""A language model around any mixer: the keys of `configs/model`, and what it was trained with.

    Args:
        name, label: of the file in `configs/model`; as figures and tables call the model.
        vocab_size: V, words of the embedding.
        tie_word_embeddings: whether the logits are by the embedding; else by a matrix of their own.
        d_model, num_layers: width D and number of blocks; transformers' hidden_size and num_hidden_layers.
        norm, final_norm, norm_eps, channel_mixer, channel_width, init_std: see `LanguageModel`.
        mixer: `_target_`, the path of a mixer's class, and its arguments.
        context: tokens of the contexts that it was trained on, which evaluation takes for its length; the memory has no
            limit of its own. None: not known.

    Raises:
        ConfigError: in one line, naming the argument, for one of another type or out of its range, or a model that
            cannot be built; also where what was changed since is saved, and where a folder's is loaded with changes.
    """

    model_type = "palimpsa"
    attribute_map = {"hidden_size": "d_model", "num_hidden_layers": "num_layers"}  # noqa: RUF012

    name: str = "palimpsa_d"
    label: str = "Palimpsa-D"
    vocab_size: int = 32_000
    d_model: int = 768
    num_layers: int = 15
    norm: str = "rmsnorm"
    final_norm: str | None = None
    norm_eps: float = 1e-6
    channel_mixer: str = "none"
    channel_width: int | None = None
    init_std: float | None = None
    mixer: dict[str, Any] | None = None
    context: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers' own names of an argument.
        for theirs, ours in self.attribute_map.items():
            if theirs in kwargs:
                setattr(self, ours, kwargs.pop(theirs))
        if self.mixer is None:
            self.mixer = dict(DEFAULT_MIXER)
        # Here, and not in a validator of transformers': its errors are of several lines, and begin with others.
        self._check()
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        try:
            # By the schema first: no tensor is made of a size that is none.
            model = convert(ModelConfig, {"name": self.name, "label": self.label, **self.model_keys()})
            check_ranges(model)
            check_model(self.model_keys())
        except ConfigError as error:
            raise ConfigError(str(error).removeprefix("model.")) from error.__cause__
        context = self.context
        is_count = isinstance(context, int) and not isinstance(context, bool) and 1 <= context <= MAX_COUNT
        if not (context is None or is_count):
            raise ConfigError(f"context: got {context!r}, expected a number of tokens >= 1, or None")
        if not isinstance(self.use_cache, bool):
            raise ConfigError(f"use_cache: got {self.use_cache!r}, expected True or False")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # The changes, vocab_size=50 say, are set on a config that is made already.
        found: Any = super().from_dict(config_dict, **kwargs)
        (found[0] if isinstance(found, tuple) else found)._check()
        return found

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        self._check()
        super().save_pretrained(*args, **kwargs)

    def validate_layer_type(self) -> None:
        """transformers' own list of types does not have the one of `MixerCacheLayer`, which every layer is of."""

    @classmethod
    def of_model(cls, config: Mapping[str, Any], **more: Any) -> PalimpsaConfig:
        """Of the `model` group of a run's config, as plain containers, and of what else transformers keeps."""
        names = {key: config[key] for key in ("name", "label", "mixer")}
        return cls(**names, **skeleton_keys(config), **more)

    def model_keys(self) -> dict[str, Any]:
        """The keys of `configs/model` that say what is built, as `build_model` takes them."""
        return {key: getattr(self, key) for key in (*SKELETON_KEYS, "mixer")}

    @property
    def layer_types(self) -> list[str]:
        """By which transformers' cache makes its layers."""
        return [LAYER_TYPE] * self.num_layers

    @property
    def max_position_embeddings(self) -> int:
        """The trained context, under the name by which evaluation harnesses ask for it.

        Raises:
            AttributeError: where it is not known.
        """
        if self.context is None:
            raise AttributeError("context: it is not known what this model was trained on")
        return self.context


__all__ = ["PalimpsaConfig"]
