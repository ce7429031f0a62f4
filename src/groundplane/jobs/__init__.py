"""Programs that are jobs themselves: they put a dataset's rows to a model, from a node, and write what came of it.

They know the domain and the standard library, and no port: what they need is in their order, what they make is files.
"""
