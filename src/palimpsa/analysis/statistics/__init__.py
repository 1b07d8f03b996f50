"""What the numbers of runs.csv and curves.csv say: learning rates chosen, means over seeds, mean learning curves.

`learning_rate` chooses each model's learning rate: palimpsa.sweeps asks it too. `throughput_limits` is of the
operators' benchmark. Needs pandas, not matplotlib, and imports nothing else of palimpsa.analysis; all the rest of it
may import this.
"""
