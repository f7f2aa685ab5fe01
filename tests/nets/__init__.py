"""Small but real networks, written in ordinary PyTorch style, that the random architectures are made of."""
