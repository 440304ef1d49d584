"""Merge checkpoints on disk, of any size and format: recipe files, plans from headers, streaming."""

from soups.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
