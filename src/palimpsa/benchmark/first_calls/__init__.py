"""The benchmark of first calls: `rows` has its rows, `process` calls an operator where nothing has been compiled yet.

Imports what the room around it does; `run` imports it.
"""
