"""Local training of a cohort, at the speed of the hardware."""
