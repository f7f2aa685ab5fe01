"""MIMO: one network that takes M inputs at once and gives M predictions."""
