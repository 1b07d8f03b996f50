"""What a memory kept of a sequence: `source` finds model and tokens, `attribution` says exactly which tokens an output
is made of, `head` measures one head, `inspection` all that a page and a picture show; `command` writes them.

Imports what `evaluation` does; `scripts` may import it.
"""
