"""What the CSV files of the training benchmark hold. No imports: both sides of the files read it.

A device has one file in the results folder, steps_SLUG.csv, one row a model and length.
"""

# What tells two rows of a file apart. seq_len: tokens.
KEY = ("model", "seq_len")

# What all rows of a file share; a run with others may not add to it. num_steps: optimiser steps measured.
IDENTITY = (
    *("device", "git_revision", "git_dirty", "versions", "scale", "trainer", "precision", "lr", "seed"),
    *("num_warmup_steps", "num_steps", "overrides"),
)

# ms_per_step, steps_per_s and tokens_per_s: over num_steps steps, with the logging, probes, validations and checkpoints
# that fall into them. loop_ms_per_step: without the pauses for probes and validations.
# first_step_s: from building the model to the end of the first step: late imports, compilation and tuning of kernels,
# the first probe; what the disk's caches hold is not compiled again. warmup_s: from building the model to the
# end of the warm-up's last step, which the capture of graphs and the first validation come before.
# peak_memory_mib: allocated on the GPU by PyTorch at most, from the run's start to the window's end.
# busy_ms_per_step: the union of all kernels, copies and fills on the GPU in a second window of as many steps, profiled;
# profiled_ms_per_step: that window's length. busy_share: busy_ms_per_step over the ms_per_step of the unprofiled one.
# num_*: in the window.
COLUMNS = {
    "steps": (
        *("model", "label", "seq_len", "batch_size", "tokens_per_step"),
        *("ms_per_step", "steps_per_s", "tokens_per_s", "loop_ms_per_step"),
        *("busy_share", "busy_ms_per_step", "profiled_ms_per_step"),
        *("first_step_s", "warmup_s", "peak_memory_mib"),
        *("num_probes", "num_validations", "num_checkpoints", "note"),
        *(*IDENTITY, "command", "date"),
    )
}
TEXT_COLUMNS = (
    *("model", "label", "note", "device", "git_revision", "git_dirty", "versions", "scale", "trainer", "precision"),
    *("overrides", "command", "date"),
)
