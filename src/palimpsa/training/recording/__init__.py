"""W&B beyond the curves: `artifacts` has the files of a run, `figures` those of a results folder, `workspace` lays
panels out online, and `command` is that command line, which lists offline runs too. Imports what `training` does;
`training`, `evaluation` and scripts may import it.
"""
