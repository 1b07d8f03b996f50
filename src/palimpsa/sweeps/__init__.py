"""Many runs: what a command line asks for, in which phases, where each stands, which launcher starts it.

`command` is the way in; it plans (`plan`), carries out (`sweep`, by way of `launch`) and shows (`ledger`, which tells
finished runs from those to launch; `estimate`, how long they take at most). `hydra_keys` says what of Hydra's own a
command may set. `launchers` checks joblib, Slurm (its requeue is set in
configs/hydra/launcher/submitit_slurm.yaml) and Ray; `child_process` gives a run a process of its own. Imports every
room but `benchmark`; of what trains it alone imports `analysis`, which says which rate is best.
"""
