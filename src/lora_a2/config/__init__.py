"""The configuration of a run, and what it stands for."""
