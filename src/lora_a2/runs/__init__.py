"""Run directories: launching, resuming, predicting."""
