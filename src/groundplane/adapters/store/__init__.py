"""The control plane's durable memory: one port, `Store`, on SQLite, PostgreSQL and in memory."""
