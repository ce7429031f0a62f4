"""Where limits are counted: in a worker, at the broker that a machine's workers lease from, or in Redis."""
