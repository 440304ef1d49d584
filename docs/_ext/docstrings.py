"""Read the docstrings of the library, which are plain text in a light style, as reStructuredText.

What stands in backticks is code, and a link where it is a public name. An indented paragraph before the first section
is code. All other characters stand for themselves. Napoleon then reads the sections (Args, Raises, Attributes).
"""

import ast
import inspect
import re
import textwrap

import public_names
from sphinx.ext.napoleon import Config, GoogleDocstring

NAPOLEON = Config(napoleon_use_ivar=True, napoleon_attr_annotations=False)  # the signature has them

SECTION = re.compile(r"(Args|Returns|Raises|Attributes)( \(.*\))?:$")
SPAN = re.compile(r"(`[^`]+`)")


def convert(app, what, name, value, options, lines) -> None:
    """Turn the lines of a docstring into reStructuredText, in place."""
    # of a property napoleon would take what is before the first colon for its type
    what = "method" if what == "property" else what
    text = GoogleDocstring(_marked_up(name, value, lines), NAPOLEON, app, what, name, value, options)
    lines[:] = text.lines()


def _marked_up(name, value, lines):
    """Return the lines with their code and characters in reStructuredText, and the sections as they are."""
    where, own = _context(name, value)
    found, rest, section = [], list(lines), ""
    while rest:
        line = rest.pop(0)
        if matched := SECTION.match(line):
            section = matched[1]
        if section == "Returns" and matched:  # which napoleon would take for a type up to the first colon
            block = textwrap.dedent("\n".join(_while(rest, _is_indented)))
            first, *others = _text(block, where, own).split("\n")
            found += [f":returns: {first}", *(f"   {text}".rstrip() for text in others)]
        elif matched and matched[2]:  # "Raises (when called):", which napoleon does not know
            entries = "\n".join([f"{matched[1]}:", *_while(rest, _is_indented)])
            told = re.sub(r"(?m)^( {4}\w+:) ", rf"\1 {matched[2].strip(' ()')}, ", entries)
            found += _text(told, where, own).split("\n")
        elif not section and line.startswith("  "):
            found += _code([line, *_while(rest, _is_indented)])
        elif not line.strip():
            found.append("")
        else:
            paragraph = [line, *_while(rest, lambda text: text.strip() and not SECTION.match(text))]
            found += _text("\n".join(paragraph), where, own).split("\n")
    return found


def tidy(_app, _what, _name, _value, _options, signature, returns) -> tuple[str | None, str | None]:
    """Return a signature whose defaults are Python: a class by its name, a function as three dots."""
    if signature:
        signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", signature)
        signature = re.sub(r"= <(?:[^<>]|<\w+>)+>", "= ...", signature)
    return signature, returns


def plain(text: str, path: str) -> str:
    """Return a comment on what has this path as reStructuredText."""
    room = path.rpartition(".")[0]
    return _text(" ".join(text.split()), ("", room, "soups"), set())


def _while(rest, holds):
    """Take the first of these lines for which something holds."""
    taken = []
    while rest and holds(rest[0]):
        taken.append(rest.pop(0))
    return taken


def _is_indented(line):
    return line.startswith("  ") or not line.strip()


def _context(name, value):
    """Return where names of a docstring are looked for, and those that mean its own parameters."""
    try:
        own = set(inspect.signature(value).parameters) if callable(value) else set()
    except (TypeError, ValueError):
        own = set()
    home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None) or "soups"
    return ("", name, name.rpartition(".")[0], home, ".".join(home.split(".")[:2]), "soups"), own


def _code(block):
    code = textwrap.dedent("\n".join(block)).strip("\n")
    try:
        ast.parse(code)
        language = "python"
    except SyntaxError:
        language = "text"
    return [f".. code-block:: {language}", "", *(f"   {line}".rstrip() for line in code.split("\n")), ""]


def _text(text, where, own):
    found = ""
    for part in SPAN.split(text):
        if SPAN.fullmatch(part):
            if found and not re.search(r"[\s'\"(\[{<\-/:]$", found):
                found += "\\ "
            found += _span(re.sub(r"\s+", " ", part[1:-1]), where, own)
        else:
            found += ("\\ " if found and re.match(r"[^\s.,;:!?'\")\]}>\-/\\]", part) else "") + _escaped(part)
    return found


def _span(text, where, own):
    name = text.removesuffix("()")
    named = re.fullmatch(r"[A-Za-z_][\w.]*", name) and name.partition(".")[0] not in own
    path = public_names.resolve(name, where) if named else None
    return f":py:obj:`{text} <{path}>`" if path else f"``{text}``"


def _escaped(text):
    # a star and a blank begin an item of a list
    return re.sub(r"([\\|`]|_(?!\w)|(?<!^)(?<!\n)\*|\*(?! ))", r"\\\1", text)
