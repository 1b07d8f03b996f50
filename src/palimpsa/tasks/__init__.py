"""What a run trains on, behind one interface: batches, loss, evaluation, stages.

`task` is the seam that the training loop sees, `build` makes a task from its config. MQAR is the first: `mqar` is the
task, `mqar_examples` draws its batches from `random`, `stages` says how many steps of what, `recall` measures it;
`loss` is any task's cross-entropy, `linear_loss` that of a language model, which makes a few rows of the logits at a
time. Imports `kernels`, `mixers` and `config`, and knows no model, trainer or file;
`training`, `sweeps` and `benchmark` may import it.
"""
