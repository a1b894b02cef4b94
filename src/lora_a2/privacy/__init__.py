"""What keeps a client's examples from showing in its uploads. NumPy only."""
