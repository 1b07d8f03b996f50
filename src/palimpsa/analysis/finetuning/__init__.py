"""What fine-tuning came to: `strength` draws the continuum, `pairs` compares what was converted with what was not.

Imports what `analysis` imports; `finetuning` and scripts may import it.
"""
