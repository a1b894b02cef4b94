"""Compiled kernels, each with a twin in PyTorch."""
