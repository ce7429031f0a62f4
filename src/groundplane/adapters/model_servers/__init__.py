"""Engines that serve a model version, each behind the ModelServer port.

`embedded` is the plug; `engine` and what it imports run only in the server's own process, with the `engine` extra.
"""
