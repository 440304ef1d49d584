"""Declare merging methods: one decorated function states a method, and all that is known of it follows from that.

    @method(base="required", per_member=("weights",), title="sign sum")
    def sign_sum(inputs: Inputs, *, weights=1.0, scale=0.1) -> Recipe:
        \"\"\"Add the signs of the task vectors.

        Author et al., "Sign sums", 2026, arXiv 2601.00000.
        \"\"\"
        return Recipe(lambda part, _: part.base + scale * sum(w * part.xp.sign(part.vector(i)) for i, w in ...))

makes `sign_sum(members, *, base, weights=1.0, scale=0.1)` with its checks, `--method sign_sum --weight 1 2 --scale 3`,
`merge_method: sign_sum` in recipe files, its line in `--methods` and in the docs, and its case in the contract test.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeVar

from soups import arguments, engine, tree
from soups.lazy import jax, jnp
from soups.names import check_name, did_you_mean, few

F = TypeVar("F", bound=Callable)
#: stands for the default of a setting that has none
REQUIRED = inspect.Parameter.empty
MANY = 10**6  # members
METHODS: dict[str, Method] = {}  #: the declared methods, by name
ELSEWHERE: dict[str, str] = {}  #: functions that no recipe file can call: what they need, the end of a sentence
_PAPER = re.compile(r'([^"]+), "([^"]+)",\s(\d{4})(?:,\sarXiv\s(\d{4}\.\d{5}))?')
_RAISES = """    ValueError: no members, trees of different structures, NaN or infinity, integer leaves that differ,
        not one value for each member, a setting of another kind or outside its range."""
_NAMELESS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_BASES = ("none", "optional", "required", "first")
_IN_FILES = {"weights": "weight", "fishers": "fisher", "masks": "mask"}
_IN_FILES |= {"fisher_base": "base_fisher", "fisher_member": "fisher"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Say what a method is given: the number of members, and whether there is a base."""

    number: int
    has_base: bool = False


class Citation(NamedTuple):
    """Name a paper."""

    authors: str  #: the first, or two, as in "Yadav et al."
    title: str
    year: str
    arxiv: str  #: its id there, or nothing


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hold the declaration of a merging method."""

    name: str  #: in recipe files and on the command line
    function: Callable[..., engine.Recipe]  #: of `Inputs` and the settings; settings of members come as lists
    defaults: Mapping[str, Any]  #: of the settings, REQUIRED where there is none
    per_member: tuple[str, ...] = ()  #: those that may be one value, a sequence, or a mapping by the members' names
    beside: tuple[str, ...] = ()  #: names of trees, one beside each member: their leaves follow the members'
    base: str = "none"  #: "none", "optional", "required", or "first": then the base is the first of the members
    base_beside: str = ""  #: the name of the tree beside the base; base and member then come first, as two ends
    members: tuple[int, int] = (1, MANY)  #: the smallest and the largest number, the base not counted
    single: bool = False  #: whether the function takes one tree instead of several
    grams: bool = False  #: whether what goes in beside has a Gram matrix [in, in] under the name of a kernel
    takes_complex: bool = False  #: whether leaves may be complex: nothing is ordered, compared or signed
    #: raises a ValueError about trees beside the members, from {name: leaf} of a member, them by member, and settings
    check: Callable[..., None] | None = None
    #: from the only member, a base that may lack leaves, and the settings to a base that has all of them
    complete: Callable[[tree.Tree, tree.Tree, Mapping[str, Any]], tree.Tree] | None = None
    #: defaults of recipe files that are not those of the function
    in_files: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only_in_python: str = ""  #: why no recipe file can call it; the end of a sentence
    #: settings that are taken and change nothing, with the reason
    idle: Mapping[str, str] = dataclasses.field(default_factory=dict)
    #: what does the same as a setting that is gone, the end of a sentence
    gone: Mapping[str, str] = dataclasses.field(default_factory=dict)
    title: str = ""  #: for people
    summary: str = ""  #: one line; without, the docstring's first
    paper: str = ""  #: authors, year and arXiv id; without, those that the docstring's last paragraph cites

    @functools.cached_property
    def citation(self) -> Citation | None:
        """Return the paper that the docstring's last paragraph cites first, if it does."""
        return _cited(self.function)

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """Return the signature of the public function."""
        one, own = "member" if self.single else "members", list(inspect.signature(self.function).parameters.values())
        front = ["base", one, self.base_beside, *self.beside] if self.base_beside else [one, *self.beside]
        kinds = {"members": "Members"} | ({} if self.single else dict.fromkeys(self.beside, "Trees"))
        positional, keyword = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        given = [inspect.Parameter(name, positional, annotation=kinds.get(name, "Tree")) for name in front]
        if self.base == "optional":
            given.append(inspect.Parameter("base", keyword, default=None, annotation="Tree | None"))
        elif self.base != "none" and not self.base_beside:
            given.append(inspect.Parameter("base", keyword, annotation="Tree"))
        own = [self._of_each(parameter) if parameter.name in self.per_member else parameter for parameter in own[1:]]
        keep_first = inspect.Parameter("keep_first", keyword, default=None, annotation="str | None")
        return inspect.Signature([*given, *own, keep_first], return_annotation="Tree")

    def _of_each(self, parameter):
        one = inspect.formatannotation(parameter.annotation) if parameter.annotation is not REQUIRED else "Any"
        return parameter.replace(annotation=f"PerMember[{one.strip(chr(39))}]")

    def __call__(self, *arguments: Any, **named: Any) -> tree.Tree:
        """Merge members by this method, as its public function does.

        Raises:
            TypeError: an argument that the signature does not have, or a required one that is missing.
            ValueError: too few or too many members; a missing base; a setting whose type is not that of its default;
                per-member settings that do not give one value for each member; complex leaves, if the method compares
                elements. Also what `engine.merge` raises, and what the method's own documentation lists.
        """
        try:
            bound = self.signature.bind(*arguments, **named)
        except TypeError as error:
            said = self._refused(named) or f"{error}; it takes {', '.join(self.signature.parameters)}"
            raise TypeError(f"{self.name}: {said}") from None
        bound.apply_defaults()
        return self._merge(**bound.arguments)

    def _refused(self, named):
        """Say which argument the method does not take, or that the base is not there."""
        known = self.signature.parameters
        for name in named:
            if name not in known:
                said = self.gone.get(name) or f"it takes {', '.join(known)}"
                return f"unknown argument {name!r}{did_you_mean(name, known)}; {said}"
        if "base" not in named and known.get("base", None) is not None and known["base"].default is REQUIRED:
            return "it needs base=, the weights that the members were fine-tuned from"
        return ""

    def _merge(self, *, member=None, members=None, base=None, keep_first, **given):
        members = {"member": member} if self.single else arguments.as_mapping(members)
        self._check_number(len(members))
        given |= {name: arguments.per_member(given[name], members, name) for name in self.per_member}
        if base is None and self.base in ("required", "first"):
            raise ValueError(f"{self.name} needs a base: the weights that the members were fine-tuned from")
        beside = {name: self._beside(name, given.pop(name), members) for name in self.beside}
        if self.base_beside:
            beside = {"": {self.base_beside: given.pop(self.base_beside)}} | beside
        if self.complete:
            base = self.complete(member, base, given)
        if self.base == "first":
            members, base = {"base": base, **members}, None
        recipe = self.recipe(Inputs(len(members), base is not None), members, **given)
        trees = [extra for found in beside.values() for extra in found.values()]
        if tree.traced((given, trees)):  # then all is part of the program
            members = {name: jax.tree.map(jnp.asarray, members[name]) for name in members}
            base = jax.tree.map(jnp.asarray, base)

        def check(headers):
            if not self.takes_complex:
                check_real(self.name, headers)
            if (only := given.get("only", ".*")) != ".*":
                tree.match(headers, only)  # an error if it matches nothing
            if self.check:
                self.check(headers, beside, given)

        labels, first = list(members) if self.single else None, int(self.base == "first")
        return engine.merge(
            recipe, members, base, trees, labels=labels, keep_first=keep_first, first=first, check=check
        )

    def _beside(self, name, values, members):
        if self.single:
            return {name: values}
        return dict(zip(members, arguments.per_member(values, members, name), strict=True))

    def recipe(self, inputs: Inputs, names: Mapping[str, Any] | None = None, /, **settings) -> engine.Recipe:
        """Return the recipe for these settings, the defaults for all others."""
        names = dict.fromkeys(map(str, range(inputs.number))) if names is None else names
        settings = {**self.defaults, **settings}
        if missing := [name for name, value in settings.items() if value is REQUIRED]:
            raise ValueError(f"{self.name} needs a value of {', '.join(missing)}")
        for name, value in settings.items():
            default = self.defaults.get(name)
            if name in self.per_member:
                own = arguments.per_member(value, names, name)
                settings[name] = [arguments.setting(one, default, name) for one in own]
            else:
                settings[name] = arguments.setting(value, default, name)
        return self._made(inputs, settings)

    def _check_number(self, number):
        low, high = self.members
        if not low <= number <= high:
            count = f"exactly {low}" if low == high else f"at least {low}"
            beside = " besides the base" if self.base in ("required", "first") else ""
            raise ValueError(f"{self.name} takes {count} member{'s' if low > 1 else ''}{beside}, got {number}")

    @functools.cached_property
    def of_member(self) -> dict[str, Any]:
        """Return the settings that recipe files give for each member, by their names there."""
        own = {name: self.defaults[name] for name in self.per_member} | dict.fromkeys(self.beside, REQUIRED)
        return {in_files(name): self.in_files.get(name, default) for name, default in own.items()}

    @functools.cached_property
    def of_merge(self) -> dict[str, Any]:
        """Return the settings that recipe files give for the whole merge, by their names there."""
        own = {name: default for name, default in self.defaults.items() if name not in self.per_member}
        own |= {self.base_beside: REQUIRED} if self.base_beside else {}
        return {in_files(name): self.in_files.get(name, default) for name, default in own.items()}

    @functools.cached_property
    def settings(self) -> dict[str, Any]:
        """Return all settings of recipe files with their defaults."""
        return {**self.of_merge, **self.of_member}

    @functools.cached_property
    def files(self) -> tuple[str, ...]:
        """Return the settings of recipe files that are paths of what goes in beside members and base."""
        return tuple(in_files(name) for name in (self.base_beside, *self.beside) if name)

    def build(self, own: list[dict[str, Any]], shared: dict[str, Any], has_base: bool) -> engine.Recipe:
        """Return the recipe for the settings of recipe files: those of each member, and those of the merge."""
        number = len(own) + (self.base == "first")
        settings = {name: [member[in_files(name)] for member in own] for name in self.per_member}
        settings |= {n: shared[in_files(n)] for n in self.defaults if n not in settings}
        return self._made(Inputs(number, has_base), settings)

    def _made(self, inputs, settings):
        recipe = self.function(inputs, **settings)
        if not isinstance(recipe, engine.Recipe):
            raise ValueError(f"{self.name} must return a Recipe, not a {type(recipe).__name__}")
        return recipe


def in_files(name: str) -> str:
    """Return what recipe files call a setting: of one member in the singular, `lambda` for `lambda_`."""
    return _IN_FILES.get(name, name.rstrip("_"))


def method(*, registry: dict[str, Method] = METHODS, **declared: Any) -> Callable:
    """Declare a merging method: the decorated function becomes `function(members, ...)`; see the fields of `Method`.

    The decorated function takes `Inputs` and its settings, and returns an `engine.Recipe`. Its name, less a leading
    underscore, and its docstring are those of the public function, whose `method` is the declaration and whose
    `recipe(inputs, **settings)` is the recipe alone.

    Raises:
        ValueError: the name of a method of another module; a function without a parameter for `Inputs`, or with
            parameters that have no names; an unknown field or `base`; `members` that are not (smallest, largest); a
            per-member setting that the function does not have; a default that can be changed, such as a list; a `seed`
            whose default is not 0.
    """
    for name in declared:
        check_name(name, [field.name for field in dataclasses.fields(Method)], "field of a method")

    def declare(function):
        inputs, *own = list(inspect.signature(function).parameters.values()) or [None]
        if inputs is None:
            raise ValueError(f"{function.__name__} must take Inputs as its first parameter")
        if nameless := [str(parameter) for parameter in own if parameter.kind in _NAMELESS]:
            raise ValueError(f"{function.__name__} must name each of its settings, instead of {nameless[0]}")
        found = Method(
            name=function.__name__.removeprefix("_"),
            function=function,
            defaults={parameter.name: parameter.default for parameter in own},
            **_described(function) | declared,
        )
        _register(found, registry)

        @functools.wraps(function)
        def merge(*arguments, **named):
            return found(*arguments, **named)

        merge.__signature__, merge.method, merge.recipe = found.signature, found, found.recipe
        merge.__doc__ = _with_errors(function)
        del merge.__wrapped__
        return merge

    return declare


def _with_errors(function):
    """Return a docstring in which also stands what all methods refuse."""
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    own = [index for index, paragraph in enumerate(paragraphs) if paragraph.startswith("Raises:")]
    if not own:
        own = [len(paragraphs) - bool(_PAPER.match(paragraphs[-1]))]
        paragraphs.insert(own[0], "Raises:")
    paragraphs[own[0]] += f"\n{_RAISES}"
    return "\n\n".join(paragraphs)


def _described(function):
    paragraphs = (inspect.getdoc(function) or "").split("\n\n")
    cited, summary = _cited(function), " ".join(paragraphs[0].split()).removesuffix(".")
    paper = f"{cited.authors} {cited.year}" + (f", {cited.arxiv}" if cited.arxiv else "") if cited else ""
    return {"summary": summary[:1].lower() + summary[1:], "paper": paper}


def _cited(function):
    paper = _PAPER.match((inspect.getdoc(function) or "").split("\n\n")[-1])
    return Citation(*(" ".join(part.split()) for part in paper.groups(""))) if paper else None


def python_only(reason: str) -> Callable[[F], F]:
    """Note why no recipe file can call a function that merges: `reason` ends a sentence that begins with its name."""

    def note(function):
        ELSEWHERE[function.__name__] = reason
        return function

    return note


def check_real(name: str, leaves: Mapping[str, Any]) -> None:
    """Raise a ValueError if leaves are complex, of which the function of this name would make no sense."""
    if odd := [leaf for leaf, array in leaves.items() if tree.is_complex(array)]:
        raise ValueError(f"{name} does not take complex leaves: {few(odd)}")


def check_alike(leaves: Mapping[str, Any], beside: Mapping[str, Mapping[str, Any]], settings: object = None) -> None:
    """Raise a ValueError unless the trees beside the members have the names and shapes of the members' leaves."""
    for trees in beside.values():
        flat = [tree.flatten(extra) for extra in trees.values()]
        tree.check_same_structure([dict(leaves), *flat], ["the weights", *trees], dtypes=False)


def _register(found, registry):
    check_name(found.base, _BASES, f"base of {found.name}")
    few_and_many = found.members if isinstance(found.members, tuple) else ()
    if [type(number) for number in few_and_many] != [int, int] or not 0 < few_and_many[0] <= few_and_many[1]:
        raise ValueError(f"members of {found.name} must be (smallest, largest) numbers, not {found.members!r}")
    for field in ("per_member", "beside"):
        if isinstance(names := getattr(found, field), str):
            raise ValueError(f"{field} of {found.name} must be a tuple of names, ({names!r},), not {names!r}")
    for name, default in found.defaults.items():
        if not isinstance(default, Hashable):  # it is looked up by its values, and must stay as it is
            raise ValueError(f"the default of {name} of {found.name} must not be a {type(default).__name__}")
    if found.defaults.get("seed", REQUIRED) not in (0, REQUIRED):  # recipe files and --seed have it
        raise ValueError(f"the default of the seed of {found.name} must be 0, that of every merge of files")
    for setting in found.per_member:
        check_name(setting, found.defaults, f"setting of {found.name}")
    known = registry.get(found.name)
    if known is not None and known.function.__module__ != found.function.__module__:
        where = known.function.__module__
        raise ValueError(f"there is already a method {found.name!r}, in {where}: choose another name")
    if found.only_in_python:
        ELSEWHERE[found.name] = found.only_in_python
    registry[found.name] = found
