"""Test which of a model's tensors an adapter's names mean, and that no name is guessed."""

import pytest

from soups.merging.adapter_names import find_tensors


def found(names, known):
    """Return the tensor of each name, and what is said of the others."""
    lines = []
    return find_tensors([f"{name}.weight" for name in names], {x: x for x in known}, "MODEL", lines), lines


@pytest.mark.parametrize(
    ("own", "adapters"),
    [
        ("language_model.model.layers.0.q", "model.language_model.layers.0.q"),
        ("model.language_model.layers.0.q", "language_model.model.layers.0.q"),
        ("model.layers.0.q", "model.language_model.layers.0.q"),
        ("language_model.lm_head", "lm_head"),
        ("visual.blocks.0.q", "model.visual.blocks.0.q"),
        ("vision_tower.layers.0.q", "model.vision_tower.layers.0.q"),
        ("layers.0.q", "transformer.layers.0.q"),
        ("model.layers.0.q", "layers.0.q"),
    ],
)
def test_other_spellings_of_the_same_modules(own, adapters):
    tensors = [f"{own}.weight", "other.weight"]
    assert found([adapters], tensors) == ({f"{adapters}.weight": f"{own}.weight"}, [])


def test_names_that_could_be_those_of_two_towers_are_an_error():
    towers = [f"{tower}.layers.{i}.q.weight" for tower in ("text_model", "vision_model") for i in (0, 1)]
    targets, (line,) = found(["layers.0.q", "layers.1.q"], towers)
    assert targets == {} and "2 names of the adapter could be those of several modules of MODEL" in line
    assert "text_model.layers.0.q.weight (after 'text_model.')" in line
    assert "vision_model.layers.0.q.weight (after 'vision_model.')" in line


@pytest.mark.parametrize("layers", [(0, 0), (0, 1)], ids=["the same layer", "other layers"])
def test_two_towers_do_not_land_on_one_trunk(layers):
    towers = [f"{tower}.layers.{i}.q" for tower, i in zip(("text_model", "vision_model"), layers, strict=True)]
    targets, (line,) = found(towers, [f"layers.{i}.q.weight" for i in (0, 1)])
    assert targets == {} and "text_model.layers.0.q.weight and others like it" in line
