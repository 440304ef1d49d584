"""Average the weights of fine-tuned networks: pools, soups and what is measured on them."""

from soups import tree as tree
