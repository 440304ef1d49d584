"""Print the merging methods of both vocabularies: all of them in a few lines each, or some with what they do."""

import inspect
from collections.abc import Sequence

from soups import merging
from soups.cli.options import option_of
from soups.cli.show import printable, say, wrapped

SEMANTICS = {"published": "the papers", "mergekit": "mergekit"}
_WHERE = {"published": "--method {}", "mergekit": "merge_method: {} in a recipe file"}


def list_methods(run) -> int:
    """Print every method with its settings."""
    for vocabulary in SEMANTICS:
        where = _WHERE[vocabulary].format("NAME")
        say(f"methods, as in {SEMANTICS[vocabulary]} ({where}):\n")
        for name, method in merging.methods_of(vocabulary).items():
            settings = [n if d is merging.REQUIRED else f"{n} {d}" for n, d in method.settings.items()]
            _entry(name, method.summary, f"base {_base(method)}; {', '.join(settings) or 'no settings'}", method.paper)
        say("")
    say("not made from checkpoints alone, or under another name:\n")
    for name, reason in merging.ELSEWHERE.items():
        _entry(name, reason)
    say("\nsoups merge --methods NAME ... says more about a method")
    run.made(*dict.fromkeys(name for vocabulary in SEMANTICS for name in merging.methods_of(vocabulary)))
    return 0


def describe_methods(names: Sequence[str], run) -> int:
    """Print what some methods do, by their names, with their settings in both vocabularies."""
    known = {vocabulary: merging.methods_of(vocabulary) for vocabulary in SEMANTICS}
    for name in names:
        if name not in known["mergekit"]:
            merging.find_method(name, "published")
    for name in names:
        found = {vocabulary: methods[name] for vocabulary, methods in known.items() if name in methods}
        _introduce(name, next(iter(found.values())))
        for vocabulary, method in found.items():
            _settings(vocabulary, method)
        if "published" in found:
            _example(found["published"])
        run.made(name)
    return 0


def explanation(method) -> list[str]:
    """Return the paragraphs of the docstring of a method that say what it computes."""
    paragraphs = (inspect.getdoc(method.function) or "").split("\n\n")[1:]
    told = [text for text in paragraphs if not text.startswith((" ", "Args:", "Raises:"))]
    return [" ".join(text.split()) for text in (told[:-1] if method.paper and told else told)]


def _introduce(name, method):
    say("\n".join(wrapped(printable(f"{name}: {method.summary}" if method.summary else name))))
    if method.paper:
        say(method.paper)
    for paragraph in explanation(method):
        say("\n" + "\n".join(f"  {line}" for line in wrapped(printable(paragraph), 2)))
    say("")


def _settings(vocabulary, method):
    say(f"{_WHERE[vocabulary].format(method.name)} (base {_base(method)}):\n")
    for setting, default in method.settings.items():
        needed = "needed" if default is merging.REQUIRED else f"default: {default}"
        several = "; one value, or one for each member" if setting in method.of_member else ""
        _entry(option_of(setting) if vocabulary == "published" else setting, f"{needed}{several}")
    if not method.settings:
        _entry("", "no settings")
    say("")


def _example(method):
    base = "" if method.base == "none" else " --base BASE"
    needed = "".join(f" {option_of(name)} VALUE" for name, d in method.settings.items() if d is merging.REQUIRED)
    members = "A" if method.members[1] == 1 else "A B" if method.members[1] == 2 else "A B C"
    say(f"  soups merge --method {method.name}{base} --members {members}{needed} --out OUT\n")


def _base(method):
    return "required" if method.base == "first" else method.base  # "first": it is where the method begins


def _entry(name, *lines):
    parts = [part for line in lines if line for part in wrapped(printable(line), 22)]
    heads = [f"  {printable(name):<19} "] + [" " * 22] * (len(parts) - 1)
    print("\n".join(head + part for head, part in zip(heads, parts, strict=True)))
