"""From run directories and benchmarks' CSV files to data frames: reading, merging, writing runs.csv and curves.csv."""
