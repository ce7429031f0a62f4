"""The clouds as they answer now: one file per cloud, each a `ports.CloudSource` around pure parsers of its answers.

What may live here: the operator's own tools and credentials, called with a time limit. Nothing is changed anywhere.
"""
