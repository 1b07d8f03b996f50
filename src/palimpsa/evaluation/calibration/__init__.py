"""Whether a memory knows when it is wrong: the variance of what it recalls, against its errors, query by query.

`queries` asks a model and keeps what it was unsure of, `detection` and `reliability` say how well that tells errors
apart, `measure` makes rows of both, and `command` is the command line, of `schema`. Imports what `evaluation` does;
scripts may import it.
"""
