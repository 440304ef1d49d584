"""The names and templates of the published zero-shot protocol are whole and in order."""

import json

import xxhash

from soups.data.imagenet.protocol import class_names, templates


def test_class_names_are_in_the_order_of_labels():
    names = class_names()
    assert len(names) == 1000
    assert all(name and name == name.strip() for name in names)
    known = {0: "tench", 1: "goldfish", 134: "crane bird", 517: "construction crane", 999: "toilet paper"}
    assert {index: names[index] for index in known} == known


def test_templates_have_one_place_for_the_name():
    assert len(templates()) == len(set(templates())) == 80
    assert all(template.count("{}") == 1 for template in templates())
    assert (templates()[0], templates()[-1]) == ("a bad photo of a {}.", "a tattoo of the {}.")


def test_nothing_was_changed_since_it_was_compared_with_open_clip():
    content = json.dumps([class_names(), templates()]).encode()
    assert xxhash.xxh3_128_hexdigest(content) == "7b0a11266d3fde28c301a40a4161fe65"
