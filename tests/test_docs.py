"""Every link of the documentation leads somewhere."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
CODE = re.compile(r"^( *)```.*?^\1```|``.*?``|`[^`\n]*`", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")


def slugs(text):
    """Return the anchors of a page's headings, as GitHub and the site make them."""
    found = set()
    for title in re.findall(
        r"^#+ +(.*?) *#*$", re.sub(r"^( *)```.*?^\1```", "", text, flags=re.M | re.S), re.MULTILINE
    ):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title)
        slug = base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = 0
        while slug in found:
            count += 1
            slug = f"{base}-{count}"
        found.add(slug)
    return found


def dead_links(page):
    """List the links of a page to files and anchors that are not there."""
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
    assert not dead_links(page)


def test_dead_links_are_found(tmp_path):
    page = tmp_path / "page.md"
    (tmp_path / "other.md").write_text("# One & two\n\n## Same\n\n## Same\n\n```bash\n# no heading\n```\n")
    links = ["other.md", "other.md#one--two", "other.md#same-1", "#here", "gone.md", "other.md#no-heading", "#there"]
    page.write_text(
        "# Here\n\n" + " ".join(f"[text]({link})" for link in links) + " `[code](nowhere.md)` https://x.org"
    )
    assert dead_links(page) == ["gone.md", "other.md#no-heading", "#there"]
