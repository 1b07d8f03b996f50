"""One run, from its config to its result: the trainer, the module that it trains, and what happens around the steps.

Imports `kernels`, `mixers`, `model`, `tasks`, `config` and `runs`.
"""
