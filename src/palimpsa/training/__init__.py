"""One run, from its config to its result: the trainer, the module that it trains, and what happens around the steps.

`preflight` says what can be told before, `run` goes from config to result. `module` is one step as Lightning runs it
(batch, loss, clipping), `graphed_step` the same as one CUDA graph (`cuda_graph`), `compiled` its compiled blocks,
`optimizer` AdamW with its schedule and what does not decay. `curriculum` walks through the stages, `history` keeps the
curves, `memory_probe` looks at windows and importances, `checkpoint` writes them down, `loggers` sends them to W&B,
`recording/` files and panels. `gpus` chooses a GPU, `distributed` shares a run between processes, `watch/` looks at
each step. Imports `kernels`, `mixers`, `model`, `tasks`, `text`, `config` and `runs`; `sweeps`, `evaluation` and
`benchmark` may import it.
"""
