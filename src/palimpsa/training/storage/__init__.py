"""What lies on a disk: checkpoints of processes that share the weights, and the weights that a run starts from.

`sharded` reads folders of shards, `strategy` writes them; `trained` reads weights from wherever they are kept, `start`
gives them to a run. Imports `runs` and `config`; `training`, `sweeps` and `conversion` may import it.
"""
