"""Many runs: what a command line asks for, in which phases, where each stands, which launcher starts it.

Imports every room but `benchmark`; of what trains it alone imports `analysis`, which says which rate is best.
"""
