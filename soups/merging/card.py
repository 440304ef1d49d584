"""Write the card of a merged model: what it was made from, under which licence, and how to make and cite it."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from soups.formats.hub import cached_model, model_id
from soups.formats.text import read_text
from soups.merging.config import folder_of
from soups.merging.lora import split_reference
from soups.merging.origin import innermost
from soups.merging.planning import Plan
from soups.merging.yaml_text import load_yaml
from soups.names import count_of, few, shown
from soups.recipes import METHODS
from soups.recipes.declare import Citation

FILE = "README.md"
_HEADER = re.compile(r"\s*---[ \t]*\r?\n(.*?\r?\n)?---[ \t]*(\r?\n|$)", re.DOTALL)
_LICENCE = ("license", "license_name", "license_link")
_STATED = (*_LICENCE, "library_name", "pipeline_tag", "language")  # all that is used of other cards
_LONGEST = 200  # characters of a value
_METRICS = 8  # columns of scores
_BAR = r"\|"  # in a cell of a table
# methods of mergekit that the papers call otherwise, or that are two
_PUBLISHED = {"dare_linear": ("dare",), "dare_ties": ("dare", "ties"), "della_linear": ("della",)}
_PUBLISHED |= {"breadcrumbs_ties": ("breadcrumbs", "ties"), "ramplus_tl": ("ram_plus",)}


@dataclasses.dataclass(frozen=True)
class Part:
    """Hold what is known of a model, or of an adapter that is added to one, of which a merge is made."""

    name: str  #: what people call it
    id: str | None  #: on the Hugging Face hub
    commit: str | None  #: of that model
    stated: Mapping[str, Any]  #: by the header of its card


def parts_of(plan: Plan) -> dict[str, list[Part]]:
    """Return the parts of each model of a merge: the model itself, then its adapters."""
    return {model: parts_of_model(model, plan.checkpoints[model]) for model in plan.job.models}


def parts_of_model(model: str, checkpoint: Any) -> list[Part]:
    """Return the parts of a model by its reference; those of a pool's member are of what it came from, if known."""
    if kept := getattr(innermost(checkpoint), "parts", ()):
        return [Part(**part) for part in kept]
    path, *adapters = _references(model)
    folder = folder_of(checkpoint)
    whole = folder == pathlib.Path(checkpoint.path) or os.path.exists(folder / "config.json")
    folders = [folder if whole else None, *(pathlib.Path(cached_model(adapter)) for adapter in adapters)]
    return [_part(reference, folder) for reference, folder in zip([path, *adapters], folders, strict=True)]


def licence_note(plan: Plan) -> list[str]:
    """Return the note that the card states no licence though a model does; none otherwise."""
    parts = parts_of(plan)
    stated = any(part.stated.get("license") for found in parts.values() for part in found)
    return ["the card states no licence: not all models state the same one"] if stated and not _licence(parts) else []


def model_card(plan: Plan, record: Mapping[str, Any], library: str | None = None) -> str:
    """Return the card of a merge in Markdown, for the same record the same bytes.

    Its header is for the Hugging Face hub: the ids of the models that have one, and what all of them state alike of
    licence, language, task and library. `library`: the name of the library if they state none.
    """
    parts = parts_of(plan)
    header = _header(parts, library)
    sections = [
        _opening(plan, record),
        _models(plan, parts, record),
        _chosen(record.get("chosen")),
        _licence_section(parts),
        f"## Recipe\n\n{_fenced(plan.job.text, 'yaml')}",
        _again(plan, parts, record),
        _citations(plan),
    ]
    return f"---\n{_yaml(header)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


# --- What is known of the models ---


def _references(model):
    path, adapter = split_reference(model)
    return [path] if adapter is None else [*_references(path), adapter]


def _part(reference, folder):
    found = model_id(folder) if folder else None
    commit = folder.name if found else None
    return Part(found or pathlib.Path(reference).name or reference, found, commit, _stated(folder))


def _stated(folder):
    """Return the header of a folder's card; of one that is none, or cannot be read, nothing is stated."""
    try:
        found = _HEADER.match(read_text(folder / FILE)) if folder else None
        header = load_yaml(found[1] or "") if found else None
    except (OSError, ValueError):
        return {}
    return {field: header[field] for field in _STATED if field in header} if isinstance(header, dict) else {}


def _agreed(parts: Iterable[Part], field: str) -> str | list[str] | None:
    """Return what all state of a field, if it is the same, and text or a list of texts."""
    values = [_texts(part.stated.get(field)) for part in parts]
    return values[0] if values and all(value == values[0] for value in values) else None


def _texts(value):
    if value is False:  # Norwegian, as YAML 1.1 reads its code
        return "no"
    if isinstance(value, list):
        texts = [_texts(item) for item in value]
        return texts if texts and all(isinstance(text, str) for text in texts) else None
    return value if isinstance(value, str) and value.isprintable() and 0 < len(value) <= _LONGEST else None


def _licence(parts):
    """Return the fields of the licence that all parts state alike; none otherwise."""
    every = [part for found in parts.values() for part in found]
    if not _agreed(every, "license"):
        return {}
    fields = {field: _agreed(every, field) for field in _LICENCE}
    same = all(value or not any(part.stated.get(field) for part in every) for field, value in fields.items())
    return {field: value for field, value in fields.items() if value} if same else {}


def _ids(parts):
    return list(dict.fromkeys(part.id for found in parts.values() for part in found if part.id))


# --- The header ---


def _header(parts, library):
    every = [part for found in parts.values() for part in found]
    models = [found[0] for found in parts.values()]
    fields = {
        "base_model": _ids(parts),
        "base_model_relation": "merge",
        "library_name": _agreed(models, "library_name") or library,
        "pipeline_tag": _agreed(models, "pipeline_tag"),
        "language": _agreed(every, "language"),
        **_licence(parts),
        "tags": ["merge", "soups"],
    }
    return {field: value for field, value in fields.items() if value}


def _yaml(header):
    import yaml

    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True, width=1 << 20)


# --- The text ---


def _opening(plan, record):
    job, method = plan.job, plan.job.definition
    semantics = "as in mergekit" if job.vocabulary == "mergekit" else "as published"
    summary = f": {method.summary}" if method.summary else ""
    version = record["versions"]["soups"]
    count = count_of(len(job.models), "model")
    chosen = record.get("chosen")
    if isinstance(chosen, Mapping) and chosen.get("recipe") == "greedy":
        tried = f" of {len(chosen['steps'])} that were tried" if isinstance(chosen.get("steps"), list) else ""
        return f"""# A greedy soup of {count}

Made by soups {version}: the average of the {count}{tried} with which the score is best, added one by one."""
    return f"""# A merge of {count}

Made by soups {version} with the method {_code(job.method)} ({semantics}){summary}."""


def _models(plan, parts, record):
    metrics = {model: _metrics(plan.checkpoints[model]) for model in record["inputs"]}
    columns = list(dict.fromkeys(name for found in metrics.values() for name in found))[:_METRICS]
    rows = [["model", "role", *(_code(name) for name in columns), "digest"]]
    rows.append(["---"] * len(rows[0]))
    for model, entry in record["inputs"].items():
        scores = [f"{metrics[model][name]:.4g}" if name in metrics[model] else "" for name in columns]
        rows.append([_title(model, parts), _role(plan, model), *scores, _code(entry["digest"])])
    table = "\n".join(f"| {' | '.join(cell.replace('|', _BAR) for cell in row)} |" for row in rows)
    notes = "".join(f"\n\nNote: {_code(note)}" for note in record.get("notes", ()))
    digest = "A digest is the XXH3 (128 bits) of the tensors that were taken from a model."
    return f"## Models\n\n{table}\n\n{digest}{notes}"


def _title(model, parts):
    if model not in parts:
        return _code(pathlib.Path(model).name)
    return " + ".join(map(_link, parts[model]))


def _link(part):
    return f"[{part.id}](https://huggingface.co/{part.id}/tree/{part.commit})" if part.id else _code(part.name)


def _role(plan, model):
    beside = "Gram matrices" if plan.job.definition.grams else "Fisher diagonal"
    return "base" if model == plan.job.base else "member" if model in plan.job.models else beside


def _metrics(checkpoint):
    """Return the numbers that a pool has of a member; none of any other model."""
    found = getattr(innermost(checkpoint), "record", {}).get("metrics", {})
    numbers = {name: value for name, value in found.items() if type(value) in (int, float)}
    return {name: value for name, value in numbers.items() if "held_out" in name} or numbers


def _chosen(chosen):
    """Return the section on how the recipe was chosen, if it was."""
    if not isinstance(chosen, Mapping) or type(chosen.get("score")) not in (int, float):
        return ""
    steps, metric = chosen.get("steps"), chosen.get("metric")
    among = f" among {count_of(len(steps), 'candidate')}" if isinstance(steps, list) and steps else ""
    by = f" by {_code(chosen['evaluation'])}" if isinstance(chosen.get("evaluation"), str) else ""
    better = {"max": "higher is better", "min": "lower is better"}.get(chosen.get("mode"))
    said = ", ".join(filter(None, [_code(metric) if isinstance(metric, str) else "", better]))
    name = f" ({said})" if said else ""
    return f"## Score\n\n{chosen['score']:.6g}{name}: the best{among}{by}. merge.json has all of them."


def _licence_section(parts):
    if licence := _licence(parts):
        name = f", {_code(licence['license_name'])}," if "license_name" in licence else ""
        return f"## Licence\n\nAll models state {_code(licence['license'])}{name} on their cards."
    stated = [
        f"{_link(part)}: {_code(licence) if (licence := _texts(part.stated.get('license'))) else 'none'}"
        for found in parts.values()
        for part in found
    ]
    lines = "\n".join(f"* {line}" for line in dict.fromkeys(stated))
    return f"## Licence\n\nNone is stated here, because the models' cards do not all state the same one:\n\n{lines}"


def _again(plan, parts, record):
    pinned = dict.fromkeys((part.id, part.commit) for found in parts.values() for part in found if part.id)
    lines = [f"hf download {name} --revision {commit}" for name, commit in pinned]
    lines += ["soups merge --verify ."]
    unknown = sum(part.id is None for found in parts.values() for part in found)
    where = f" No id on the hub is known of {unknown} of them: merge.json has their paths." if unknown else ""
    text = "In this folder, this makes it again from the models and compares it bit for bit."
    commands = _fenced("\n".join(lines), "bash")
    return f"## Make it again\n\n{text}{where}\n\n{commands}"


def _citations(plan):
    names = _PUBLISHED.get(plan.job.method, (plan.job.method,)) if plan.job.vocabulary == "mergekit" else ()
    methods = [METHODS[name] for name in names if name in METHODS] or [plan.job.definition]
    if not any(method.paper for method in methods):
        return ""
    papers = [f"* {_paper(method)}" for method in methods if method.paper]
    entries = [_bibtex(method.citation) for method in methods if method.citation]
    block = [_fenced("\n\n".join(entries), "bibtex")] if entries else []
    return "\n\n".join(["## Papers", "\n".join(dict.fromkeys(papers)), *block])


def _paper(method):
    linked = re.sub(r"\b(\d{4}\.\d{5})\b", r"[arXiv \1](https://arxiv.org/abs/\1)", shown(method.paper))
    return f"{linked}: {shown(method.citation.title)}" if method.citation else linked


def _bibtex(citation: Citation) -> str:
    authors = re.sub(r" et al\.?", " and others", citation.authors).replace(", ", " and ")
    key = re.sub(r"\W", "", authors.split()[0].lower()) + citation.year
    title = re.sub(r"[{}\\]", "", citation.title)
    fields = {"author": authors, "title": f"{{{title}}}", "year": citation.year}
    if citation.arxiv:
        fields |= {"eprint": citation.arxiv, "archivePrefix": "arXiv"}
        fields |= {"url": f"https://arxiv.org/abs/{citation.arxiv}"}
    return f"@misc{{{key},\n" + "".join(f"  {name} = {{{value}}},\n" for name, value in fields.items()) + "}"


def _code(text):
    """Return a text as a span of code, in which nothing means anything."""
    text = shown(few(text) if isinstance(text, list) else str(text))
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if text.startswith("`") or text.endswith("`") or not text.strip() else ""
    return f"{ticks}{space}{text}{space}{ticks}"


def _fenced(text, language):
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
