"""From run directories and benchmarks' CSV files to the paper's figures: pandas and matplotlib, never torch.

collect/ makes runs.csv and curves.csv of run directories, and reads what the benchmarks and scripts/illustrate.py
wrote; statistics/ has the choice of each model's learning rate and the numbers of figures and tables; draw/ has one
module a figure. On top of them `tables` (Markdown and terminal), `sweep_table` (what ends a sweep over learning
rates), `style` and `titles` (how models look and what experiments are called), `build` (every figure and table of a
results folder), and `marked_text` and `text_blocks` (the numbers that `make figures` writes into README.md and docs/).
language/ has the tables of language models, memory/ draws what a model's memory kept, and dashboard/ makes pages to
look at all of it in a browser.

It imports palimpsa.config and palimpsa.runs alone. Of what trains only palimpsa.sweeps imports it; palimpsa.benchmark
and scripts may.
"""
