"""One language model around any mixer: its stack and embedding, its sizes in a table, its data flow as boxes.

Imports `kernels`, `mixers` and `config`.
"""
