"""Run the notebooks of docs/notebooks at their full size, and keep what they print and draw in their files.

    pip install nbclient ipykernel
    python scripts/notebooks.py                                        # all, in a few minutes
    python scripts/notebooks.py docs/notebooks/own_model.ipynb

The outputs are those of Jupyter, with figures of 256 colours, and a digest of the code that they belong to.
tests/test_notebooks.py runs the same cells at a small size, without Jupyter, and refuses outputs of other code.
"""

import argparse
import base64
import hashlib
import io
import json
import pathlib
import re
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
COLOURS = 256  # of a figure, which makes its file a third
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")  # of a table for terminals; pages that show notebooks may not know it


def code_cells(notebook: dict) -> list[str]:
    """Return the source of each cell of code."""
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]


def digest(notebook: dict) -> str:
    """Return the digest of all code of a notebook."""
    return hashlib.sha256(json.dumps(code_cells(notebook)).encode()).hexdigest()


def run(path: pathlib.Path) -> None:
    """Run a notebook in an empty folder, and write it with its outputs."""
    import nbclient
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        done = nbformat.read(path, as_version=4)
        place = {"metadata": {"path": folder}}
        nbclient.NotebookClient(done, timeout=None, coalesce_streams=True, resources=place).execute()
    done.metadata = {
        "code_sha256": digest(done),
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in done.cells:
        cell.metadata = {}  # when it ran
        for output in cell.get("outputs", ()):
            _simplify(output)
    nbformat.write(done, path)


def _simplify(output):
    """Leave out of an output what only a terminal shows, and colours of a figure that nobody sees."""
    data = output.get("data", {})
    for place, name in ((output, "text"), (data, "text/plain")):
        if name in place:
            place[name] = _ESCAPE.sub("", place[name])
    if "image/png" in data:
        data["image/png"] = _small(data["image/png"])


def _small(png):
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        buffer = io.BytesIO()
        image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def main() -> None:
    """Run the notebooks that the command line names, or all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=pathlib.Path, default=sorted(FOLDER.glob("*.ipynb")))
    for path in parser.parse_args().notebooks:
        run(path)
        print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
