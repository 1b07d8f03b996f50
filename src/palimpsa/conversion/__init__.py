"""From a trainer's checkpoint to a folder of Hugging Face's transformers, and back; from a Mamba-2 to a Palimpsa.

`checkpoint` reads and writes the one, `folder` the other, with `tokenizer` and `card` for what lies beside the weights.
`metaplastic` gives a model without importances precisions that are very small at first (`initial_scales`); `source`
reads it, of ours or by `mamba2`, with `mamba2_options` and `weight_files`. `command` is what scripts/convert.py runs.
Imports `mixers`, `model`, `training`, `tasks`, `text`, `runs` and `config`; `evaluation` and scripts may import it.
"""
