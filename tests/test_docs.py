"""Every link of the documentation leads somewhere, every public name is documented, and the site builds in silence."""

import html.parser
import importlib
import pathlib
import re
import shutil
import subprocess
import sys
import urllib.parse

import numpy as np
import pytest

import soups
from soups.cli import COMMANDS

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE = re.compile(r"^( *)```.*?^\1```|``.*?``|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def slugs(text):
    """Return the anchors of a page's headings, as GitHub makes them."""
    found, text = set(), re.sub(r"^( *)```.*?^\1```", "", text, flags=re.MULTILINE | re.DOTALL)
    for title in re.findall(r"^#+ +(.*?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = 0
        while slug in found:
            count += 1
            slug = f"{base}-{count}"
        found.add(slug)
    return found


def dead_links(page):
    """List the links of a page of Markdown to files and anchors that are not there."""
    dead = []
    for target in LINK.findall(CODE.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name) if name else page
        if not path.exists() or (anchor and anchor not in slugs(path.read_text(encoding="utf-8"))):
            dead.append(target)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_and_headings(page):
    # pages of the reference are written when the site is built
    assert not [link for link in dead_links(page) if not link.startswith("api/")]


def test_dead_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One & two\n\n## Same\n\n## Same\n\n```bash\n# no heading\n```\n")
    links = ["other.md", "other.md#one--two", "other.md#same-1", "#here", "gone.md", "other.md#no-heading", "#there"]
    page.write_text(
        "# Here\n\n" + " ".join(f"[text]({link})" for link in links) + " `[code](nowhere.md)` https://x.org"
    )
    assert dead_links(page) == ["gone.md", "other.md#no-heading", "#there"]


# --- The site ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def extension(monkeypatch):
    """Return a function that imports a module of the site's extension."""
    monkeypatch.syspath_prepend(ROOT / "docs" / "_ext")
    return importlib.import_module


@pytest.fixture(scope="module")
def site(tmp_path_factory, quick_start):
    """Return the folder of the site, built from a copy: nothing is written beside the sources."""
    copy = tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "docs", copy / "docs", ignore=shutil.ignore_patterns("api", "*.json", "__pycache__"))
    for page in ROOT.glob("*.md"):
        shutil.copy(page, copy)
    for name in ("configs", "soups"):
        (copy / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "docs", "built"]
    done = subprocess.run(command, cwd=copy, env=quick_start, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return copy / "built"


class Page(html.parser.HTMLParser):
    """Keep the anchors of a page, and what it links to, shows and loads."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links = set(), []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        self.links += [found[name] for name in ("href", "src") if found.get(name) is not None]


def dead_references(folder):
    """List the links of all pages of a site to files and anchors that are not there."""
    pages = {path.resolve(): Page(path) for path in folder.rglob("*.html")}
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / urllib.parse.unquote(parts.path)).resolve() if parts.path else path
            anchor = urllib.parse.unquote(parts.fragment)
            if not target.exists() or (anchor and target in pages and anchor not in pages[target].anchors):
                dead.append(f"{path.name}: {link}")
    return dead


def test_the_site_has_no_dead_link(site):
    assert not dead_references(site)
    front = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="tutorial.html"' in front and "number_of_models.png" in front


def test_dead_references_of_a_site_are_found(tmp_path):
    links = ["b.html#y", "b.html", "https://x.org/gone"]
    (tmp_path / "a.html").write_text(
        '<p id="x"></p><img src="d.png">' + "".join(f'<a href="{one}">a</a>' for one in links)
    )
    (tmp_path / "b.html").write_text('<a href="a.html#x">a</a><a href="#top">t</a><a href="a.html?v=1">a</a>')
    assert sorted(dead_references(tmp_path)) == ["a.html: b.html#y", "a.html: d.png", "b.html: #top"]


def test_every_public_name_has_its_place_in_the_reference(site, extension):
    names = extension("public_names")
    anchors = set().union(*(Page(path).anchors for path in (site / "api").glob("*.html")))
    listed = [name.path for room in names.rooms().values() for name in room]
    assert len(listed) > 250 and not {name for name in listed if name not in anchors}
    offered = {f"soups.{name}" for name in soups.__all__ if not name.startswith("_")}
    assert offered - set(listed) - set(names.rooms()) <= {"soups.merge", "soups.rebasin", "soups.sparsify"}
    assert {"soups.Pool.add", "soups.recipes.sparsify.Sparsifier.apply", "soups.evaluate.METRICS"} <= anchors


def test_every_command_has_its_help_on_the_site(site):
    text = (site / "api" / "commands.html").read_text(encoding="utf-8")
    assert all(f"usage: soups {command}" in text for command in COMMANDS)
    assert "usage: soups pool verify" in text


def test_every_public_name_has_a_docstring(extension):
    assert extension("public_names").undocumented() == []


def test_a_public_name_without_a_docstring_is_found(extension, monkeypatch):
    names = extension("public_names")
    names.rooms()
    for owner in (soups.uniform, soups.Pool.add, soups.Pool):
        monkeypatch.setattr(owner, "__doc__", None)
    assert {"soups.uniform", "soups.Pool.add", "soups.Pool"} <= set(names.undocumented())


def test_docstrings_are_read_as_they_are_meant(extension):
    def measure(path, *, weights):
        """Weigh |a| by `weights`s of `soups.uniform`, as m*_l; see `soups.Pool.add` and `path`.

            measure("a")

        * one, and
          more

        Args:
            weights: of `soups.tree.
                mean`, or `a b`.

        Returns:
            A pair: both floats.

        Raises (when called):
            ValueError: it is `None`.
        """

    lines = measure.__doc__.replace("\n        ", "\n").splitlines()
    extension("docstrings").convert(None, "function", "soups.measure", measure, None, lines)
    text = "\n".join(lines)
    assert text.startswith(
        "Weigh \\|a\\| by ``weights``\\ s of :py:obj:`soups.uniform <soups.uniform>`, as m\\*_l; see "
    )
    assert ":py:obj:`soups.Pool.add <soups.Pool.add>` and ``path``." in text
    assert '.. code-block:: python\n\n   measure("a")\n' in text and "\n* one, and\n  more\n" in text
    assert ":returns: A pair: both floats." in text and ":raises ValueError: when called, it is ``None``." in text
    assert "``soups.tree. mean``" in text and "``a b``" in text


def test_notebooks_become_pages_with_their_outputs(extension):
    image = {"output_type": "display_data", "data": {"image/png": "iVBO\nRw0K", "text/plain": "<Figure>"}}
    outputs = [{"output_type": "stream", "name": name, "text": [f"to {name}\n"]} for name in ("stdout", "stderr")]
    outputs += [image, {"output_type": "execute_result", "data": {"text/plain": ["'```'"]}}]
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Text"]},
        {"cell_type": "code", "source": ["1 + 1"], "outputs": outputs},
        {"cell_type": "code", "source": "", "outputs": []},
    ]
    text = extension("notebooks").markdown({"metadata": {}, "cells": cells})
    expected = "# Title\n\nText\n\n```python\n1 + 1\n```\n\n```text\nto stdout\n```\n\n"
    expected += "![what the cell draws](data:image/png;base64,iVBORw0K)\n\n````text\n'```'\n````\n"
    assert text == expected


def test_the_tutorial_predicts_with_what_a_run_leaves(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    network = soups.models.glyph_vit(class_names="0123456789")
    soups.Pool("runs/digits/soups").add("seed0_greedy_soup", network.init(None, (28, 28, 1)), {})
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tutorial.md").read_text(), re.DOTALL)
    exec(compile(code, "tutorial", "exec"), {})
    found = np.array(capsys.readouterr().out.strip("[]\n").split(), int)
    assert (found == np.arange(10)).sum() >= 7  # the start weights tell 89 % apart
