"""Five benchmarks: operators against each other, each checked against float64 first, their first calls, training,
pretraining and evaluation.

`run` has the command line and the loop over rows, `base` what it asks of a benchmark. `schema` has the keys of
configs/benchmark/, `config` composes and checks them (`checks`: single keys), `store` keeps the CSV files.
Operators: `cases` has the rows, `operators` what is timed and its float64 formula, `measure` the checks and the clocks.
First calls: `first_calls/`.
Training: `training_runs` has the rows, `training_config` their configs, `isolated` gives each run a process of its own,
`steps` times it from within, `gpu_load` says what a GPU did meanwhile.
Pretraining: `pretraining/`. Evaluation: `evaluation/`.

Imports every other room; nothing but scripts/ imports it.
"""
