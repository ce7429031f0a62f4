"""Numbered schema changes, applied in order when the store is opened. Never edited once released: add the next one."""
