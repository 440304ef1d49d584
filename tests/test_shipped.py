"""Files that come with the package: what a build of it would take along, and what an installed one finds."""

import fnmatch
import importlib.resources
import pathlib
import tomllib

import pytest

from soups.data import glyphs
from soups.models import pretrained
from soups.shipped import shipped

ROOT = pathlib.Path(__file__).parents[1]
FILES = {
    "soups.models": ["weights/glyph_vit.safetensors", "weights/README.md"],
    "soups.data": ["printed_digits.npz"],
}


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in FILES.items() for name in names])
def test_data_are_declared_and_found(package, name):
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    # a pattern is of a package's own folder; "*" of fnmatch would go into others
    patterns = [one for one in declared["*"] + declared.get(package, []) if one.count("/") == name.count("/")]
    assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
    assert importlib.resources.files(package).joinpath(name).is_file()


def test_the_files_of_the_package_have_their_digests():
    for path, digest in ((glyphs.PRINTED, glyphs.PRINTED_DIGEST), (pretrained.WEIGHTS, pretrained.DIGEST)):
        assert shipped(path, digest) == path
