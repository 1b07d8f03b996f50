"""Language models as Hugging Face's transformers know them; importing this registers them with its Auto classes.

`configuration` is the config, `cache` what a mixer carries as a layer of their cache, `modeling` the model. Needs
torch and transformers alone: no Hydra, no Lightning. Whatever may import `model` may import it.
"""

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from palimpsa.model.hf.cache import MixerCacheLayer
from palimpsa.model.hf.configuration import PalimpsaConfig
from palimpsa.model.hf.modeling import PalimpsaForCausalLM

AutoConfig.register(PalimpsaConfig.model_type, PalimpsaConfig, exist_ok=True)
AutoModelForCausalLM.register(PalimpsaConfig, PalimpsaForCausalLM, exist_ok=True)
# Where Trainer looks whether labels that it smooths are shifted: of another class each token is its own label.
MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[PalimpsaConfig.model_type] = PalimpsaForCausalLM.__name__

__all__ = ["MixerCacheLayer", "PalimpsaConfig", "PalimpsaForCausalLM"]
