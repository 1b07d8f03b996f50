"""What a model's memory kept, as a picture: `inspection_file` reads inspection.json, `picture` draws one head of it.

Imports what `analysis` imports; `evaluation`, scripts and `analysis.dashboard` may import it.
"""
