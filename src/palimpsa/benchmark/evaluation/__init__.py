"""The benchmark of evaluation: `rows` has its rows, `folders` writes models, `process` scores one of them.

Imports what the room around it does, and `evaluation`; `run` imports it.
"""
