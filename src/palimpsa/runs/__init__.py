"""One run on disk: its directory and files, its identity, its result, where it came from, how far it is.

Imports `config` alone, and never torch when it is imported.
"""
