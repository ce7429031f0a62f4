"""HTTP/1.1, server-sent events, bodies, and the words of each API: bytes in, values out; no limits and no state."""
