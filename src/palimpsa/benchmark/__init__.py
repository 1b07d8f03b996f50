"""The operators timed against each other, each checked against float64 first.

`config` composes and checks configs/benchmark.yaml, `cases` lists what to measure, `operators` has what is measured
and its float64 formula, `measure` the checks and the clocks, `store` the CSV files, `run` goes through it all.
"""
