"""Read notebooks with the outputs that they hold, as pages of Markdown; nothing is run."""

import json

from myst_parser.parsers.sphinx_ import MystParser

IMAGES = ("image/png", "image/jpeg")


class NotebookParser(MystParser):
    """Parse a notebook."""

    supported = ("ipynb",)

    def parse(self, inputstring, document):
        """Parse what `markdown` makes of a notebook."""
        super().parse(markdown(json.loads(inputstring)), document)


def markdown(notebook: dict) -> str:
    """Return the cells of a notebook as Markdown: text, code, and below it what it printed or drew."""
    language = notebook["metadata"].get("kernelspec", {}).get("language", "python")
    parts = []
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            parts += [_fenced(source, language), *(_output(output) for output in cell["outputs"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def _fenced(text, language):
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


def _output(output):
    if output["output_type"] == "stream":
        return _fenced("".join(output["text"]), "text") if output["name"] == "stdout" else ""
    data = output.get("data", {})
    for kind in IMAGES:
        if kind in data:
            return f"![what the cell draws](data:{kind};base64,{''.join(data[kind]).strip().replace(chr(10), '')})"
    if "text/markdown" in data:
        return "".join(data["text/markdown"])
    return _fenced("".join(data["text/plain"]), "text") if "text/plain" in data else ""
