"""The data plane: OpenAI-compatible, its own process. Reads a compiled snapshot, never a table."""
