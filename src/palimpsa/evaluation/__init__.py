"""What a trained model does: `trained` reads it from a run's directory, `sampling` lets it write, `pretraining` shows a
run of pretraining to whoever started it. `command` evaluates one, of `models`: `harness` on zero-shot tasks,
`long_range` by `perplexity` and `recall`; `task_records` looks at local records, `unfinished` keeps what is done until
all is, and `result` writes down what came of it. `memory` looks into the memory of one.

Imports what `training` does, and `training` and `analysis` beside it; `scripts` may import it.
"""
