"""Engines side by side on the same sparse networks; run with ``python -m benchmarks.inference``."""
