"""Write a page of the reference for each room of the library."""

import importlib
import inspect
import pathlib

import command_pages
import docstrings
from public_names import methods, rooms
from sphinx.pycode import ModuleAnalyzer


def write_pages(folder: pathlib.Path) -> None:
    """Write a page for each room, one that lists them and one of the commands; those that are the same already stay."""
    pages = {f"{room}.rst": _page(room, names) for room, names in rooms().items()}
    pages |= {"index.rst": _index(), "commands.rst": command_pages.page()}
    folder.mkdir(exist_ok=True)
    for path in folder.glob("*.rst"):
        if path.name not in pages:
            path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _page(room, names):
    lines = [room, "=" * len(room), "", f".. automodule:: {room}", "   :no-members:", "   :no-index:", ""]
    homes = list(dict.fromkeys(name.home for name in names))
    for home in homes:
        if len(homes) > 1 and home != room:
            title = home.removeprefix(f"{room}.").replace("_", " ").replace(".", ": ").strip()
            title = title[0].upper() + title[1:]
            lines += [title, "-" * len(title), "", f".. automodule:: {home}", "   :no-members:", "   :no-index:", ""]
        for name in names:
            if name.home == home:
                lines += _entry(name)
    return "\n".join(lines)


def _entry(name):
    if name.kind == "data":
        listed = ", ".join(f"``{one}``" for one in name.value) if isinstance(name.value, dict | tuple) else ""
        doc = docstrings.plain(f"{name.doc[:1].upper()}{name.doc[1:]}.", name.path)
        module, _, own = name.path.rpartition(".")
        head = [f".. py:data:: {own}", f"   :module: {module}", ""]
        return [*head, f"   {doc}", *(["", f"   {listed}"] if listed else []), ""]
    members = []
    if name.kind == "autoclass":
        fields = ModuleAnalyzer.for_module(name.home).find_attr_docs()
        members = [field for kind, field in fields if kind == name.value.__name__]
        members += methods(name.value)
    options = [f"   :members: {', '.join(members)}", "   :member-order: bysource"] if members else []
    return [f".. {name.kind}:: {name.path}", *options, ""]


def _index():
    lines = ["API reference", "=============", ""]
    lines += [
        "What a user calls is one import away, as in ``soups.greedy``; it is documented with the room that it is from.",
        "Each public name of the library is on one of these pages.",
        "",
    ]
    for room, names in rooms().items():
        summary = (inspect.getdoc(importlib.import_module(room)) or "").partition("\n")[0]
        listed = " · ".join(_link(name) for name in names)
        lines += [f":doc:`{room} <{room}>`", f"   {summary}", "", f"   {listed}", ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {room}" for room in rooms()), ""]
    return "\n".join(lines)


def _link(name):
    shown = name.path.removeprefix("soups.") if name.path.count(".") == 1 else name.path.rpartition(".")[2]
    return f":py:obj:`{shown} <{name.path}>`"
