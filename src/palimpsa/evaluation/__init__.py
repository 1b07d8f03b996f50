"""What a trained model does: `trained` reads it from a run's directory, `sampling` lets it write, `pretraining` shows a
run of pretraining to whoever started it.

Imports what `training` does, and `training` and `analysis` beside it; `scripts` may import it.
"""
