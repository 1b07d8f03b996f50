"""Checkpoints of processes that share the weights: `sharded` reads their folders, `strategy` writes them.

Of the other rooms it imports `runs`; `training` alone may import it.
"""
