"""All that needs Triton: the operator's kernels, and training's (convolution, loss, embedding, random bits).

Needs torch and Triton. Imported when a kernel is called, never before; it imports nothing of the other rooms.
"""
