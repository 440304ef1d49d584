"""Turn image folders, TFDS sets and arrays into tasks: decoded splits, distribution shifts and shuffled batches."""

from soups.lazy import attach

__getattr__, __dir__, __all__ = attach(__name__, __file__)
