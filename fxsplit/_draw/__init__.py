"""A split model as a picture."""
