"""Many runs: what a command line asks for, in which phases, where each stands, which launcher starts it.

`command` is the way in; it plans (`plan`), carries out (`sweep`, by way of `hydra_plugin`) and shows (`ledger`).
Imports every room but `benchmark`; of what trains it alone imports `analysis`, which says which rate is best.
"""
