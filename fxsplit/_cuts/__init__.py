"""Where a model can be split, and what passes there."""
