"""Fresh heads: new values for every random tensor, drawn as the model draws its own."""
