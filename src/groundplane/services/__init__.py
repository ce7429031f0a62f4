"""Use cases: load, decide (domain), act (ports), commit. Async; never touches the world but through a port."""
