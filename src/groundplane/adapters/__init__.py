"""The outside world, one plug per file, each behind a port of `groundplane.ports`."""
