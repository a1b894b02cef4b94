"""Statistics from a run's record: what was selected, how alike clients are, what averaging loses. No torch.

record       a run directory, read back
ranks        selected ranks by layer and module type
similarity   clients beside each other: selected sets, updates, labels; a permutation test
convergence  metrics by round and byte, rounds to a goal, the Pareto front of several runs
summary      all of it for one run
"""
