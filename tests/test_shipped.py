"""Files that come with the package: what a build of it would take along, and what an installed one finds."""

import os
import pathlib
import re
import subprocess
import sys
import zipfile

import pytest

from soups.data import glyphs
from soups.models import pretrained
from soups.shipped import configs, shipped

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return a folder in which a wheel is unpacked, as pip does."""
    folder = tmp_path_factory.mktemp("installed")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", folder]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def test_a_wheel_has_what_git_has(installed):
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "soups", "configs"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if tracked.returncode:
        pytest.skip("this is no clone of the repository")
    expected = {re.sub("^configs/", "soups/configs/", name) for name in tracked.stdout.splitlines()}
    found = {path.relative_to(installed).as_posix() for path in (installed / "soups").rglob("*") if path.is_file()}
    assert found == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("digits", "unknown option --config.nothing; fields of the config: about"),
        ("imagenet/wise_ft_vit_l14", "unknown option --config.nothing; fields of the config: arch"),
        (
            "digit",
            "no file at digit, and no config of the package has this name (did you mean 'digits'?); there are:",
        ),
        ("digit.py", "no file at digit.py"),
    ],
)
def test_an_installed_package_runs_its_configs_by_their_names(installed, tmp_path, given, line):
    command = [sys.executable, "-m", "soups", "run", "--config", given, "--config.nothing=1"]
    environment = os.environ | {"PYTHONPATH": str(installed)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1


def test_the_names_of_configs_are_those_of_their_files():
    found = {name: path.relative_to(ROOT / "configs").as_posix() for name, path in configs().items()}
    assert found["imagenet/clip_vit_b32_soups"] == "imagenet/clip_vit_b32_soups.py"
    assert len(found) == len(list((ROOT / "configs").rglob("*.py"))) and "digits" in found


def test_the_files_of_the_package_have_their_digests():
    for path, digest in ((glyphs.PRINTED, glyphs.PRINTED_DIGEST), (pretrained.WEIGHTS, pretrained.DIGEST)):
        assert shipped(path, digest) == path
