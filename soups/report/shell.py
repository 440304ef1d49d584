"""Build what all report pages share: the page around the sections, figures, cells, what folds out."""

import base64
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from soups.report import page_assets, page_tables
from soups.report.figures import Drawn


def shell(
    results: Mapping, sections: Sequence[tuple[str, str, str]], *, intro: str, described: str, facts: Iterable[str] = ()
) -> str:
    """Write a page that needs no other file: heading, facts of the run, `intro`, the sections that are not empty.

    `sections`: (anchor, heading, HTML). `described`: the document that describes the results file. `facts`: more of the
    run beside when, with which seeds and on what it was made.
    """
    sections = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{heading}</a>' for anchor, heading, _ in sections)
    body = "".join(f'<section><h2 id="{a}">{heading}</h2>\n{text}\n</section>\n' for a, heading, text in sections)
    title = escape(f"Soups: {results['experiment']}")
    seeds = f"seeds {', '.join(map(str, results['seeds']))}" if results.get("seeds") else ""
    known = [results.get("created", ""), seeds, results.get("device", ""), *facts]
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<link rel="icon" href="data:,">
<style>{page_assets.CSS}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="quiet">{" · ".join(escape(str(fact)) for fact in known if fact)}</p>
<nav>{links}</nav>
</header>
<main>
{intro}
{body}</main>
<footer class="quiet">Made from results.json alone, which is described in {described}.</footer>
<script>{page_assets.SCRIPT}</script>
</body>
</html>
"""


def figures(drawn: Sequence[Drawn]) -> str:
    """Write the figures into the page itself, each with its title, its caption and its file."""
    return "".join(
        f'<figure id="figure-{figure.name}"><img alt="{escape(figure.title)}" '
        f'src="data:image/png;base64,{base64.b64encode(figure.png).decode("ascii")}">'
        f"<figcaption><h3>{escape(figure.title)}</h3><p>{escape(figure.caption)}</p>"
        f"<code>figures/{figure.name}.png</code></figcaption></figure>\n"
        for figure in drawn
    )


def folded(parts: Iterable[tuple[str, Mapping]]) -> str:
    """Write mappings as tables that fold out, those that are not empty."""
    return "".join(
        f"<details><summary>{name}</summary>{page_tables.pairs_table(found)}</details>\n"
        for name, found in parts
        if found
    )


def head_cell(text: str) -> str:
    """Write the heading of a row."""
    return f'<th scope="row" class="text" data-v="{escape(text)}">{escape(text)}</th>'


def text_cell(text) -> str:
    """Write a cell of text."""
    return f'<td class="text" data-v="{escape(str(text))}">{escape(str(text))}</td>'


def number_cell(text: str, value: float) -> str:
    """Write a cell with a number as `text`, "mean ±spread", sorted by its value."""
    mean, _, deviation = text.partition(" ±")
    inner = escape(mean) + (f' <small class="spread">±{escape(deviation)}</small>' if deviation else "")
    return f'<td data-v="{f"{value:.10g}" if math.isfinite(value) else ""}"><span>{inner}</span></td>'
