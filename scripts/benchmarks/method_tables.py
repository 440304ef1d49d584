"""Write the table of methods in docs/merging.md anew from their declarations.

python scripts/benchmarks/method_tables.py
"""

from parity_tables import DOCS, put

from soups.recipes import METHODS
from soups.recipes.declare import REQUIRED

PAGE = DOCS / "merging.md"
_BASES = {"none": None, "optional": "may", "required": "yes", "first": "the end at 0"}


def main():
    """Replace what stands between the marks of the table."""
    PAGE.write_text(page())


def page():
    """Return the page with the table as it should be."""
    return put(PAGE.read_text(), "methods", methods())


def methods():
    """Yield the rows of all methods that merge by weights and files."""
    yield ["function", "base", "settings", "what it does", "paper"]
    for name, method in METHODS.items():
        if not method.only_in_python:
            beside = {other: REQUIRED for other in (method.base_beside, *method.beside) if other}
            settings = [_setting(method, *pair) for pair in {**beside, **method.defaults}.items()]
            yield [f"`{name}`", _BASES[method.base], ", ".join(settings) or None, method.summary, method.paper or None]


def _setting(method, name, default):
    shown = name if default is REQUIRED else f"{name}={default!r}".replace("'", '"')
    each = "ᵐ" if name in (*method.per_member, *method.beside) else ""
    return f"`{shown}`{each}" + (f" (files: {method.in_files[name]!r})" if name in method.in_files else "")


if __name__ == "__main__":
    main()
