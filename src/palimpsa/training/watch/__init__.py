"""What is watched while a run trains: `loss_guard` refuses a step that would spoil it, `throughput` counts its costs,
`step_bar` shows them, `stop_signal` hears what a scheduler says.

Imports nothing of the other rooms; `training` alone may import it.
"""
