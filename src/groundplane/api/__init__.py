"""The control-plane HTTP door: thin routers, error mapping, access."""
