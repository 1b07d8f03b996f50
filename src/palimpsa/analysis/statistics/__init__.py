"""What the numbers of runs.csv and curves.csv say: chosen learning rates, means over seeds, mean curves."""
