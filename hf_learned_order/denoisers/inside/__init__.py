"""The inside of a transformers model: its layers, its attention maps, hooks on it and what is wrapped around it.

It imports nothing of this package.
"""
