"""How many models of each zoo are traced, exactly, and split: ``python -m benchmarks.coverage``."""
