"""The data plane: OpenAI-compatible, its own process. Reads a compiled snapshot, never a table.

A request's life: `client_side` reads and authenticates it → `json_body` finds model and stream → `exchange` reserves
limits and money and writes RESERVED to the `wal` → `upstream` sends the caller's own bytes on a pooled connection →
`exchange` relays the answer, `sse` frame by frame → SETTLED is in the `wal` → the last bytes leave → what was reserved
and not used goes back.
"""
