"""A spec becomes a plan: every way to buy the work, what it is checked for, and how it is told."""
