"""From files to checked data frames: run directories (merged, thinned, written as CSV), benchmarks, illustrations.

`result_files` is the entry: it reads with `run_directories`, thins with `thin_curves`, and sums up where rows came from
with `provenance_summary`. `benchmark_columns` needs no package: palimpsa.benchmark writes by it. Needs pandas, not
matplotlib; within palimpsa.analysis, `statistics` is used for the choice of the curves to keep, and nothing of `draw`.
"""
