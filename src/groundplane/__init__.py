"""Groundplane: a self-service control plane for AI infrastructure.

A newcomer starts at docs/ARCHITECTURE.md; the public Python API is `groundplane.client.Client`.
"""

__version__ = "0.1.0"
