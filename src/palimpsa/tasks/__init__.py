"""What a run trains on, behind one interface: batches, loss, evaluation, stages.

`task` is the seam that the training loop sees, `build` makes a task from its config, `loss` is any task's cross-
entropy, `linear_loss` that of a language model, which makes a few rows of the logits at a time, and `random` what they
draw from. MQAR is the first: `mqar` is the task, `mqar_examples` draws its batches, `stages` says how many steps of
what, `recall` measures it. Pretraining is the second: `commonsense` is the task, `packing` says where a stream of
documents is cut, `token_batches` reads it, `perplexity` measures it, and `data_digests` is what a run's identity says
of its data. Imports `kernels`, `mixers`, `config` and `text`, and knows no model or trainer; `training`, `sweeps` and
`benchmark` may import it.
"""
