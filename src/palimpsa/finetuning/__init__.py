"""Metaplastic fine-tuning: from a trained model to a metaplastic one that is trained on, and whether it is better.

`source` makes a model to start from of whatever is given, `command` is scripts/finetune.py. `strengths` measures a
model at several strengths of its importances, for `strengths_command`, which is scripts/vary_strength.py.
`demonstration` pairs what was converted with what was not, by the plan of `schema`, and `evaluate` measures both, for
`demonstrate_command`, scripts/demonstrate.py. Imports what trains, converts, evaluates, sweeps and draws; scripts alone
may import it.
"""
