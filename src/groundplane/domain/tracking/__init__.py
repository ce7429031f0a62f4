"""Experiments, tracked runs and their metrics: what they are, how they are searched and looked at."""
