"""Save a split model to one file and load it by repeating the surgery."""
