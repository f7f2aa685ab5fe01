"""The paper's experiments as plain Python: methods, data, metrics, training, one configuration per table row."""
