"""Causal language models: models that write."""
