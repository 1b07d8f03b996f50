"""Columns of the benchmarks' CSV files. No imports: those who measure, collect and draw all read this.

A device has its own files, KIND_SLUG.csv, one row a measurement: operators_*.csv and throughput_*.csv of the operators,
first_call_*.csv of their compilation, steps_*.csv of training, pretraining_*.csv of that of language models,
evaluation_speed_*.csv of their evaluation. Of each benchmark a KEY tells two rows of a file apart, and SHARED is what
all of its rows have in common: a run with other values may not add to it.
"""

# name -> label. The order is that of figures.
OPERATORS = {
    "palimpsa": "Palimpsa",
    "palimpsa_grouped": "Palimpsa, one precision for 16 rows",
    "palimpsa_scalar": "Palimpsa, one precision a head",
    "palimpsa_without_metaplasticity": "Palimpsa w/o metaplasticity",
    "simple_gla": "simple GLA (fla)",
    "gla": "GLA (fla)",
    "gated_deltanet": "Gated DeltaNet (fla)",
    "softmax_attention": "softmax attention",
}
# flash-linear-attention's kernels run on an NVIDIA GPU only.
NEED_CUDA = ("simple_gla", "gla", "gated_deltanet")
# Those that call it on a GPU.
NEED_FLA = (*NEED_CUDA, "palimpsa_without_metaplasticity")

# Of a grouped precision: the smallest groups that a GPU takes by products of matrices.
ROWS_A_GROUP = 16

_PALIMPSA = ("palimpsa", "palimpsa_scalar", "palimpsa_without_metaplasticity")
OPERATORS_OF_CASE = {
    "table": (_PALIMPSA[0], "palimpsa_grouped", *_PALIMPSA[1:], "simple_gla", "gated_deltanet"),
    "decode": (_PALIMPSA[0], "palimpsa_grouped", *_PALIMPSA[1:], "simple_gla"),
    "lengths": (*_PALIMPSA, "gla", "gated_deltanet", "softmax_attention"),
    # The one that ratios are taken against comes first.
    "throughput": ("simple_gla", *reversed(_PALIMPSA)),
}
BASELINE = "simple_gla"

OPERATOR_KEY = ("case", "shape", "operator", "B", "T", "H", "K", "V", "dtype")

# sizes: what the figures against length hold fixed.
OPERATOR_SHARED = ("device", "git_revision", "git_dirty", "versions", "sizes", "warmup_ms", "repeat_ms")

# Errors are relative, ||x - ref|| / ||ref|| against float64 on a small problem of the same K and V, the worst
# over all outputs and all gradients.
_ERRORS = ("error_forward", "error_backward", "tolerance", "note")
_ORIGIN = (*OPERATOR_SHARED, "command", "date")

OPERATOR_COLUMNS = {
    # case: copy, table, decode or lengths. Times are medians in ms, the forward's without autograd: as called, with
    # what the host takes where the device waits for it, and of the device alone: of calls that wait for it.
    # peak_memory_mib: of a forward and backward, beyond the inputs, the output's gradient and all gradients included.
    # Picoseconds are per element, B T H K V of them; the limit is that of one reciprocal an element.
    # bandwidth_gb_s: bytes_moved per second of the device alone / 1e9; bandwidth_share: of the copy that the same run
    # measured.
    "operators": (
        *OPERATOR_KEY,
        "forward_ms",
        "forward_backward_ms",
        "forward_device_ms",
        "forward_backward_device_ms",
        "peak_memory_mib",
        "forward_ps_per_element",
        "forward_backward_ps_per_element",
        "limit_ps_per_element",
        "bytes_moved",
        "bandwidth_gb_s",
        "bandwidth_share",
        *_ERRORS,
        *_ORIGIN,
    ),
    # case: prefill (T tokens a sequence at once) or decode (one token after the other, B sequences at once).
    # thousand_tokens_per_s: over the whole batch. slowdown: simple GLA's throughput over this one's.
    "throughput": (
        *OPERATOR_KEY,
        "ms",
        "thousand_tokens_per_s",
        "slowdown",
        *_ERRORS,
        *_ORIGIN,
    ),
}

# What is called of an operator: its forward, without autograd, or its backward too.
PASSES = ("forward", "forward_backward")

FIRST_CALL_KEY = ("operator", "passes")

# sizes: of all calls, in their order.
FIRST_CALL_SHARED = ("device", "git_revision", "git_dirty", "versions", "sizes")

FIRST_CALL_COLUMNS = {
    # A process whose caches are empty calls the operator once at each of num_calls sizes. first_s, largest_later_s,
    # total_s: seconds of the first call, of the slowest of the others, and of all; starting CUDA and importing packages
    # come before. num_compiled: kernels that Triton compiled, num_compiled_later: after the first call. variants: of
    # each kernel; most_variants: the largest of these numbers.
    "first_call": (
        *FIRST_CALL_KEY,
        *("num_calls", "first_s", "largest_later_s", "total_s"),
        *("num_compiled", "num_compiled_later", "most_variants", "variants"),
        *(*FIRST_CALL_SHARED, "command", "date"),
    ),
}

# seq_len: tokens.
TRAINING_KEY = ("model", "seq_len")

# num_steps: optimiser steps measured.
TRAINING_SHARED = (
    *("device", "git_revision", "git_dirty", "versions", "scale", "trainer", "precision", "lr", "seed"),
    *("num_warmup_steps", "num_steps", "overrides"),
)

TRAINING_COLUMNS = {
    # ms_per_step, steps_per_s and tokens_per_s: over num_steps steps, with the logging, probes, validations and
    # checkpoints that fall into them. loop_ms_per_step: without the pauses for probes and validations.
    # first_step_s: from building the model to the end of the first step: late imports, compilation and tuning of
    # kernels, the first probe; what the disk's caches hold is not compiled again. warmup_s: from building the model to
    # the end of the warm-up's last step, which the capture of graphs and the first validation come before.
    # peak_memory_mib: allocated on the GPU by PyTorch at most, from the run's start to the window's end.
    # busy_ms_per_step: the union of all kernels, copies and fills on the GPU in a second window of as many steps,
    # profiled; profiled_ms_per_step: that window's length. busy_share: busy_ms_per_step over the ms_per_step of the
    # unprofiled one. num_*: in the window.
    "steps": (
        *("model", "label", "seq_len", "batch_size", "tokens_per_step"),
        *("ms_per_step", "steps_per_s", "tokens_per_s", "loop_ms_per_step"),
        *("busy_share", "busy_ms_per_step", "profiled_ms_per_step"),
        *("first_step_s", "warmup_s", "peak_memory_mib"),
        *("num_probes", "num_validations", "num_checkpoints", "note"),
        *(*TRAINING_SHARED, "command", "date"),
    ),
}

# context, tokens_per_step: tokens. accumulate, checkpoint_blocks (0 or 1): the trainer's keys.
PRETRAINING_KEY = ("model", "context", "tokens_per_step", "accumulate", "checkpoint_blocks")

# tokens: whose, "random" or the digest of the training split.
PRETRAINING_SHARED = (
    *("device", "git_revision", "git_dirty", "versions", "trainer", "precision", "tokens", "lr", "seed"),
    *("num_warmup_steps", "num_steps", "log_every", "overrides"),
)

PRETRAINING_COLUMNS = {
    # Of the rows of history.csv, one for log_every steps, that come after num_warmup_steps steps: tokens_per_s, mfu
    # (of a GPU whose peak is known), data_wait and gradient_norm are medians, without what validations take; loss is
    # the last one's, nats a token, first_loss that of the run's first row. peak_memory_gib: allocated on the GPU by
    # PyTorch at most, over the whole run. first_row_s: from building the model to the end of the run's first row, what
    # compiling and tuning kernels take included.
    "pretraining": (
        *("model", "label", "num_parameters", "context", "tokens_per_step", "accumulate", "checkpoint_blocks"),
        *("tokens_per_s", "mfu", "data_wait", "peak_memory_gib", "gradient_norm", "first_loss", "loss", "first_row_s"),
        *(*PRETRAINING_SHARED, "command", "date"),
    ),
}

# path: "hflm", the harness's own, or "ours". data, tokenizer: SHA-256; of records, or "hub". lm_eval: its version.
EVALUATION_SPEED_KEY = ("model", "path")

EVALUATION_SPEED_SHARED = (
    *("device", "git_revision", "git_dirty", "versions", "task", "data", "num_items", "batch_size", "context"),
    *("dtype", "sizes", "tokenizer", "lm_eval", "seed"),
)

EVALUATION_SPEED_COLUMNS = {
    # Of a process whose caches are empty. load_s: from its start to a model that can be asked, imports included.
    # first_s: of scoring num_items items, what is compiled in it included; again_s: of the same once more.
    # speed_ratio, total_speed_ratio, again_speed_ratio: how many times as fast as HFLM on the Llama, by first_s, by
    # load_s and first_s together, and by again_s. value: the task's first metric.
    "evaluation_speed": (
        *("model", "path", "num_parameters", "load_s", "first_s", "again_s"),
        *("speed_ratio", "total_speed_ratio", "again_speed_ratio", "value"),
        *(*EVALUATION_SPEED_SHARED, "command", "date"),
    ),
}

# All other columns of all files hold numbers.
TEXT_COLUMNS = (
    *("case", "shape", "operator", "dtype", "sizes", "model", "label", "scale", "trainer", "precision", "overrides"),
    *("passes", "variants", "tokens", "path", "task", "data", "tokenizer", "lm_eval", "note"),
    *("device", "git_revision", "git_dirty", "versions", "command", "date"),
)
