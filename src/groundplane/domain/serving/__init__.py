"""What the gateway decides, shared with the control plane: limits, routes, cache, usage, what is kept."""
