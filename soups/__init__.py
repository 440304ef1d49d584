"""Average the weights of fine-tuned networks: pools, soups and what is measured on them.

What a user calls is one import away; `__init__.pyi` lists the names, each of which is imported when it is first used.
"""

from soups.lazy import attach

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = attach(__name__, __file__)
