"""From run directories to the paper's figures: pandas and matplotlib, never torch.

The order of use: `load` and `collect` make runs.csv and curves.csv, `select_lr` chooses a learning
rate a model, `summarize` computes the table's numbers, `tables` and `figures` show them, `build`
does all of it for a folder.
"""
