"""Studies: what their members are, and what is cooked from them."""

from soups.studies.cook import cook
from soups.studies.kitchen import Kitchen

__all__ = ["Kitchen", "cook"]
