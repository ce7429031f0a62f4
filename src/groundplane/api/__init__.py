"""The control-plane HTTP door: thin routers, error mapping, access.

A router parses, calls one service and answers; it never opens a transaction and never decides. Every route declares its
permission with `requires`, or stands in `access.OPEN_ROUTES` with its reason.
"""
