"""Test that YAML of any kind is read as plain values, or refused in words and soon."""

import codecs

import pytest

from soups.merging import parse_recipe, read_recipe
from soups.merging.yaml_text import load_yaml


def test_values():
    text = "{a: 1e-5, b: -2E+3, c: 1.5e2, d: 1e5x, e: 0x1e, f: 2024-01-31, g: yes, h: ~, 1: x, on: x, ~: x}"
    assert load_yaml(text) == {
        **{"a": 1e-5, "b": -2000.0, "c": 150.0, "d": "1e5x", "e": 30, "f": "2024-01-31", "g": True, "h": None},
        **{"1": "x", "on": "x", "~": "x"},
    }
    assert load_yaml("[-.5, +.25, .5e3, -.5E-1, -., .5.]") == [-0.5, 0.25, 500.0, -0.05, "-.", ".5."]
    assert load_yaml("") is None
    assert load_yaml("---\na: 1\n---\n") == {"a": 1}


def test_anchors_and_merge_keys():
    text = "x: &x {p: 1, q: 2}\na: &a {<<: *x, p: 3}\nb: {<<: [*a, *x], r: 1}\nc: {<<: *a}"
    assert load_yaml(text) == {
        **{"x": {"p": 1, "q": 2}, "a": {"p": 3, "q": 2}, "b": {"p": 3, "q": 2, "r": 1}, "c": {"p": 3, "q": 2}}
    }


def laughs(first, item):
    lines = [f"a0: &a0 {first}"] + [f"a{i}: &a{i} {item.replace('X', f'*a{i - 1}')}" for i in range(1, 60)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "the text is not YAML"),
        ("a: 1\na: 2", "is not YAML: 'a' appears twice at line 2, column 1"),
        ("a: 1\n---\nb: 2", "the text has several documents: give each a file of its own"),
        (laughs("[x]", "[X, X, X, X, X, X, X, X, X, X]"), "written out, are more than 100,000 values"),
        (laughs("{k: 1}", "{<<: [X, X, X, X, X, X, X, X]}"), "written out, are more than 100,000 values"),
        (f"a: &a {'x' * 400_000}\nb: [*a, *a, *a]", "written out, are more than 100,000 values"),
        (laughs("[x]", "[X]"), "written out, are more than .* 50 levels"),
        ("&a [*a]", "an anchor contains itself"),
        ("a: &a {b: {c: *a}}", "an anchor contains itself"),
        ("&a {<<: *a}", "an anchor contains itself"),
        ("[" * 100_000, "nesting depth|more than 50 levels"),
        ("[" * 100 + "]" * 100, "more than 50 levels"),
        ("{a: " * 100_000, "more than 50 levels"),
        ("- " * 50_000, "more than 50 levels"),
        ("[" + "a," * 101_000 + "]", "more than 100,000 values"),
        ("!!python/object/apply:os.system [ls]", "the tag .*python/object/apply:os.system"),
        ("{!!python/name:os.system a: 1}", "the tag .*python/name:os.system"),
        ("a: !!binary abcd", "the tag .*binary"),
        ("a: !!timestamp 2020-01-01", "the tag .*timestamp"),
        ("!!set {a, b}", "the tag .*set"),
        ("!mine a", "the tag '!mine'"),
        ("? [a]\n: b", "a key must be text"),
        ("{{a: b}: c}", "a key must be text"),
        ("a: " + "9" * 5000, "the text is not YAML: Exceeds the limit"),
        ("!!int ''", "a tag does not fit its value"),
        ("!!bool x", "a tag does not fit its value"),
        ("!!map 3", "expected a mapping"),
        ("<<: 3", "<< takes a mapping or a list of mappings"),
        ("<<: [{a: 1}, b]", "<< takes a mapping or a list of mappings"),
        ("a\0b", "characters are not allowed"),
        ("a: *x", "undefined alias 'x'"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        load_yaml(text)


def test_a_recipe_says_where():
    with pytest.raises(ValueError, match="the recipe is not YAML: 'a' appears twice"):
        parse_recipe("a: 1\na: 2")


RECIPE = "merge_method: passthrough\nmodels: [{model: ä}]\n"


@pytest.mark.parametrize(
    "content",
    [
        RECIPE.encode(),
        codecs.BOM_UTF8 + RECIPE.encode(),
        codecs.BOM_UTF16_LE + RECIPE.encode("utf-16-le"),
        codecs.BOM_UTF16_BE + RECIPE.encode("utf-16-be"),
    ],
)
def test_encodings(tmp_path, content):
    (tmp_path / "r.yml").write_bytes(content)
    job = read_recipe(tmp_path / "r.yml")
    assert (job.models, job.text) == (["ä"], RECIPE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n", r"r.yml is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>a: b</html>", r"r.yml is a web page"),
        (b"a: b # " + b"x" * 10**6, r"r.yml has 1000007 bytes, more than 1000000"),
        (RECIPE.encode("latin-1"), r"r.yml is not text in UTF-8: .* at byte"),
        (b"", r"r.yml is empty"),
    ],
)
def test_files_that_are_no_recipes(tmp_path, content, message):
    (tmp_path / "r.yml").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_recipe(tmp_path / "r.yml")


def test_places_that_are_no_files(tmp_path):
    with pytest.raises(ValueError, match="is a directory"):
        read_recipe(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"r\.yml is not there"):
        read_recipe(tmp_path / "r.yml")
