"""What the recurrence minimises and remembers, in float64: free energy, special cases, capacity, recall by age.

Imports `kernels` alone; scripts and tests import it.
"""
