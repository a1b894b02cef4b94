"""Values and exact maths on them. NumPy only."""
