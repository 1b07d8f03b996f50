"""Data: synthetic recall tasks that are generated where they are used."""
