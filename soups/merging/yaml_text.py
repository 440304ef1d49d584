"""Read YAML that may be anything: of bounded size and depth, with plain values alone; and write it."""

import re
from typing import Any

import yaml
from yaml.composer import Composer
from yaml.constructor import SafeConstructor
from yaml.parser import Parser
from yaml.reader import Reader
from yaml.resolver import Resolver
from yaml.scanner import Scanner

LARGEST = 1_000_000  # bytes of a file
VALUES, DEPTH, LONG = 100_000, 50, 10  # with anchors written out; 10 characters count as a value
_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")}


def load_yaml(text: str, where: str = "the text") -> Any:
    """Return the value of a YAML document, in which 1e-5 and -.5 are numbers, keys and dates text, other tags errors.

    Raises:
        ValueError: text that is not YAML, or holds several documents; a key that appears twice, or is not text; a tag
            that does not fit its value; more than 100,000 values or 50 levels when anchors are written out; an anchor
            inside itself.
    """
    try:
        value, more = _Loader(text).load()
    except LookupError as error:
        raise ValueError(f"{where} is not YAML: a tag does not fit its value") from error
    except (yaml.YAMLError, ValueError) as error:  # PyYAML's numbers raise what int and float raise
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "at ")
        raise ValueError(f"{where} is not YAML: {reason}") from error
    if more:
        raise ValueError(
            f"{where} has several documents: give each a file of its own, and merge them one after another"
        )
    return value


def dump_yaml(value: Any) -> str:
    """Return plain values as a YAML document, keys in their order."""
    return yaml.safe_dump(value, sort_keys=False)


try:  # several times as fast, and part of PyYAML's wheels
    from yaml.cyaml import CParser as _Events
except ImportError:

    class _Events(Reader, Scanner, Parser):
        def __init__(self, text):
            Reader.__init__(self, text)
            Scanner.__init__(self)
            Parser.__init__(self)


class _Loader(Composer, _Events, SafeConstructor, Resolver):
    def __init__(self, text):
        _Events.__init__(self, text)
        Composer.__init__(self)
        SafeConstructor.__init__(self)
        Resolver.__init__(self)
        self.level = self.composed = 0

    def load(self):
        """Return the first document's value, and whether others follow that are not empty."""
        nodes = []
        while self.check_node():
            nodes.append(self.get_node())
        if not nodes:
            return None, False
        _measure(nodes[0], {})
        return self.construct_document(nodes[0]), any(node.tag != "tag:yaml.org,2002:null" for node in nodes[1:])

    def compose_node(self, parent, index):
        self.level += 1
        self.composed += 1
        if self.level > DEPTH or self.composed > VALUES:
            limit = f"{DEPTH} levels" if self.level > DEPTH else f"{VALUES:,} values"
            raise _problem(self.peek_event(), f"it has more than {limit}")
        node = super().compose_node(parent, index)
        self.level -= 1
        return node

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _problem(key, "a key must be text")
            if key.value in seen:
                raise _problem(key, f"{key.value!r} appears twice")
            seen.add(key.value)
        return node

    def flatten_mapping(self, node):
        # PyYAML's own takes {p: 1} for c in "a: &a {p: 1}", "b: &b {<<: *a, p: 3}", "c: {<<: *b}"
        merged, own = {}, {}
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for part in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if not isinstance(part, yaml.MappingNode):
                        raise _problem(part, "<< takes a mapping or a list of mappings")
                    self.flatten_mapping(part)
                    merged = {pair[0].value: pair for pair in part.value} | merged
            else:
                own[key.value] = (key, value)
                if key.tag in _TAGS:  # 1, on and null are text, as tokens may be
                    key.tag = "tag:yaml.org,2002:str"
        node.value = list((merged | own).values())


def _measure(node, known):
    """Return (values, levels) of a node with its anchors written out; an anchor stands before what refers to it."""
    if id(node) in known:
        if known[id(node)] is None:
            raise _problem(node, "an anchor contains itself")
        return known[id(node)]
    known[id(node)] = None
    children = []
    if isinstance(node, yaml.SequenceNode):
        children = node.value
    elif isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    sizes = [_measure(child, known) for child in children]
    values = 1 + sum(size for size, _ in sizes) + (len(node.value) // LONG if isinstance(node, yaml.ScalarNode) else 0)
    levels = 1 + max((level for _, level in sizes), default=0)
    if values > VALUES or levels > DEPTH:
        raise _problem(node, f"its anchors, written out, are more than {VALUES:,} values or {DEPTH} levels")
    known[id(node)] = values, levels
    return values, levels


def _problem(node, text):
    return yaml.MarkedYAMLError(None, None, text, node.start_mark)


# a date is text, and 1e-5 and -.5 are numbers, which YAML 1.1 takes for text
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if not tag.endswith(":timestamp")]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: construct for tag, construct in yaml.SafeLoader.yaml_constructors.items() if tag is None or tag in _TAGS
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?([0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+|\.[0-9]+([eE][-+]?[0-9]+)?)$"),
    list("-+.0123456789"),
)
