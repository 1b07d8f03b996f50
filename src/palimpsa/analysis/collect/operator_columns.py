"""What the CSV files of the operator benchmark hold. No imports: both sides of the files read it.

A device has two files in the results folder, operators_SLUG.csv and throughput_SLUG.csv, one row a measurement.
"""

# name -> label. The order is that of figures.
OPERATORS = {
    "palimpsa": "Palimpsa",
    "palimpsa_without_metaplasticity": "Palimpsa w/o metaplasticity",
    "simple_gla": "simple GLA (fla)",
    "gla": "GLA (fla)",
    "gated_deltanet": "Gated DeltaNet (fla)",
    "softmax_attention": "softmax attention",
}
# flash-linear-attention's kernels run on an NVIDIA GPU only.
NEED_CUDA = ("simple_gla", "gla", "gated_deltanet")

_RECURRENT = ("palimpsa", "palimpsa_without_metaplasticity", "simple_gla")
OPERATORS_OF_CASE = {
    "table": _RECURRENT,
    "decode": _RECURRENT,
    "lengths": ("palimpsa", "palimpsa_without_metaplasticity", "gla", "gated_deltanet", "softmax_attention"),
    # The one that ratios are taken against comes first.
    "throughput": ("simple_gla", "palimpsa_without_metaplasticity", "palimpsa"),
}
BASELINE = "simple_gla"

# What tells two rows of a file apart.
KEY = ("case", "shape", "operator", "B", "T", "H", "K", "V", "dtype")

# What all rows of a file share; a run with others may not add to it. sizes: what the figures against length hold fixed.
IDENTITY = ("device", "git_revision", "git_dirty", "versions", "sizes", "warmup_ms", "repeat_ms")

# Errors are relative, ||x - ref|| / ||ref|| against float64 on a small problem of the same K and V, the worst
# over all outputs and all gradients.
_ERRORS = ("error_forward", "error_backward", "tolerance", "note")
_ORIGIN = (*IDENTITY, "command", "date")

# case: copy, table, decode or lengths. Times are medians in ms, the forward's without autograd.
# peak_memory_mib: of a forward and backward, beyond the inputs, the output's gradient and all gradients included.
# Picoseconds are per element, B T H K V of them; the limit is that of one reciprocal an element.
# bandwidth_gb_s: bytes_moved per second / 1e9; bandwidth_share: of the copy measured by the same run.
OPERATOR_COLUMNS = (
    *KEY,
    "forward_ms",
    "forward_backward_ms",
    "peak_memory_mib",
    "forward_ps_per_element",
    "forward_backward_ps_per_element",
    "limit_ps_per_element",
    "bytes_moved",
    "bandwidth_gb_s",
    "bandwidth_share",
    *_ERRORS,
    *_ORIGIN,
)

# case: prefill (T tokens a sequence at once) or decode (one token after the other, B sequences at once).
# thousand_tokens_per_s: over the whole batch. slowdown: simple GLA's throughput over this one's.
THROUGHPUT_COLUMNS = (
    *KEY,
    "ms",
    "thousand_tokens_per_s",
    "slowdown",
    *_ERRORS,
    *_ORIGIN,
)
COLUMNS = {"operators": OPERATOR_COLUMNS, "throughput": THROUGHPUT_COLUMNS}
TEXT_COLUMNS = (
    *("case", "shape", "operator", "dtype", "note", "device", "git_revision", "git_dirty", "versions"),
    *("sizes", "command", "date"),
)
