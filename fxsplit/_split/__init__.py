"""The surgery: a traced graph becomes a trunk, heads and a vote."""
