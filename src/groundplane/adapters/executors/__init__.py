"""Executors: one file per kind of pool."""
