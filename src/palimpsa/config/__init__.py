"""The keys of configs/: their schema and ranges, how configs are composed, what a mistake says.

Imports nothing of the other rooms; every room but `kernels`, `mixers` and `theory` may import it.
"""
