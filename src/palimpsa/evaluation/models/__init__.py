"""The model that is evaluated: `checkpoints` finds it, `codecs` makes its tokens, `scoring` asks it, a
GPU by `replays`.

`public_folders` reads one of transformers. Imports what `evaluation` does; the other modules of `evaluation` import it.
"""
