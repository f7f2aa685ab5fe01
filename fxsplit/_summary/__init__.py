"""Parameters, nonzeros and FLOPs of a model, by named conventions."""
