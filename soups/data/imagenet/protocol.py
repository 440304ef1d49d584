"""Return the names and the templates with which CLIP tells the classes of ImageNet apart without training."""

import functools
import importlib.resources
import json


def class_names() -> tuple[str, ...]:
    """Return the English names of ImageNet's 1000 classes, in the order of their WordNet ids, which is that of labels.

    They are those that OpenAI chose for CLIP, not the first lemmas of WordNet: "crane bird" and "construction crane".

    Radford et al., "Learning transferable visual models from natural language supervision", 2021, arXiv:2103.00020.
    """
    return tuple(_protocol()["class_names"])


def templates() -> tuple[str, ...]:
    """Return OpenAI's 80 templates, such as "a bad photo of a {}.", each with one "{}" for the name of the class."""
    return tuple(_protocol()["templates"])


@functools.cache
def _protocol():
    return json.loads(importlib.resources.files(__package__).joinpath("protocol.json").read_text("utf-8"))
