"""From a trainer's checkpoint to a folder of Hugging Face's transformers, and back.

`checkpoint` reads and writes the one, `folder` the other, with `tokenizer` and `card` for what lies beside the weights;
`command` is what scripts/convert.py runs. Imports `model`, `training`, `tasks`, `text`, `runs` and `config`;
`evaluation` and scripts may import it.
"""
