"""Every model of the zoos that tests and benchmarks trace: how to build it, and inputs at any batch size."""
