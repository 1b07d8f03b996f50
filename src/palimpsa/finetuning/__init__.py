"""Metaplastic fine-tuning: from a trained model to a metaplastic one that is trained on, and whether it is better.

`source` makes a model to start from of whatever is given, `command` is scripts/finetune.py, `strengths` measures a model
at several strengths of its importances (scripts/vary_strength.py), `demonstration` compares what was converted with what
was not (scripts/demonstrate.py), by the plan that `schema` describes. Imports what trains, converts, evaluates and draws;
scripts alone may import it.
"""
