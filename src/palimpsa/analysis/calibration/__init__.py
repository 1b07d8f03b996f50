"""Whether a memory's variance predicts its errors: `rows` has what was measured, `figure` and `tables` show it,
`comparison` says which of two scores tells errors better, and `build` makes all of a folder.

Imports what `analysis` imports; `evaluation` and scripts may import it.
"""
