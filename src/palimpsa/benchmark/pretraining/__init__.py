"""The benchmark of pretraining: `plan` has the runs and their configs, `rows` the benchmark over them, `training`
measures one from within, in a process of its own, and `random_text` has the tokens where no others are given.

Imports what the room around it does, and text; `run` imports it.
"""
