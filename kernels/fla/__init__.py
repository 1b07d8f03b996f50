"""Every call into flash-linear-attention: the baselines' recurrences, GLA's chunks, guards against wrong kernels.

Needs torch, and flash-linear-attention when a function is called. Imported by the mixers, the benchmark and
`kernels.linear`; it imports nothing of the other rooms.
"""
