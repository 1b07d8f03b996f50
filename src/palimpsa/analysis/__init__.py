"""From run directories to the paper's figures: pandas and matplotlib, never torch.

The order of use: `load`, `merge` and `collect` make runs.csv and curves.csv, `select_lr` chooses a
learning rate a model, `summarize` computes the table's numbers, `tables`, `figures` and
`sensitivity` show them, `build` does all of it for a folder. `rate_table` ends a sweep over
learning rates.
"""
