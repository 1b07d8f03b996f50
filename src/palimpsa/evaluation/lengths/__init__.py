"""Runs of associative recall at other lengths than they were trained on: `command` is the way in, `measure` tests.

Imports what `evaluation` does; `scripts` may import it.
"""
