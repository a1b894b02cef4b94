"""Several runs in one directory: comparisons, sweeps, experiments."""
