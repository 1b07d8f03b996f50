"""What evaluation.csv says of language models: tables, a report with pictures, and the numbers that others published.

Imports what `analysis` imports; `analysis`, `evaluation` and scripts may import it.
"""
