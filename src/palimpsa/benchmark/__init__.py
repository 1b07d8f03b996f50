"""Two benchmarks: the operators timed against each other, each checked against float64 first, and the training loop.

`schema` has the keys of configs/benchmark/, `config` composes and checks them, `store` keeps the CSV files. Operators:
`cases` lists what to measure, `operators` has what is measured and its float64 formula, `measure` the checks and the
clocks, `run` goes through it all. Training: `training_config` lists the runs, `apart` gives each a process of its own,
`steps` times it from within, `busy` tells what a GPU did meanwhile, `training` goes through it all.
"""
