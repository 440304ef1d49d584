"""Write the tables of docs/parity.md anew from the records in docs/benchmarks.

    python scripts/benchmarks/parity_tables.py

First copy the records that `parity.py`, `parity_rounding.py`, `parity_mergekit_tests.py`, `parity_peers.py`,
`parity_models.py`, `parity_encoders.py`, `parity_decoders.py`, `parity_tokenizer.py`, `parity_text_tokenizer.py` and
`parity_multiple_choice.py` wrote to docs/benchmarks.
"""

import json
import pathlib
import re

DOCS = pathlib.Path(__file__).parents[2] / "docs"


def main():
    """Replace what stands between the marks of each table."""
    page = DOCS / "parity.md"
    text = page.read_text()
    for table in (mergekit, mergekit_tests, means, models, tokenizer, text_tokenizer, multiple_choice):
        text = put(text, table.__name__, table())
    for peer in ("fusion_bench", "sd_mecha", "git_re_basin"):
        text = put(text, peer, peers(_record(f"parity_{peer}")))
    page.write_text(text)


def put(text, name, rows):
    """Put a table between its marks."""
    header, *body = rows
    lines = [header, ["---"] * len(header), *body]
    table = "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines)
    pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no table {name!r}")
    return pattern.sub(lambda marks: f"{marks[1]}\n{table}\n\n{marks[2]}", text)


def mergekit():
    """Return the rows of the comparison with mergekit: both dtypes, and bfloat16 with float32 arithmetic."""
    found = {}
    for dtype, case, difference, share in _record("parity")["rows"]:
        found.setdefault(case, {})[dtype] = (difference, share)
    exact = {row["case"]: (row["difference"], row["elements"]) for row in _record("parity_rounding")["rows"]}
    yield ["recipe", "float32", "bfloat16", "beyond 0.04", "float32 arithmetic", "other elements"]
    for case, by_dtype in found.items():
        difference, share = exact.get(case, (None, None))
        rounded = by_dtype.get("bfloat16", (None, None))
        yield [case, by_dtype["float32"][0], *rounded, difference, None if share is None else f"{100 * share:.2g} %"]


def mergekit_tests():
    """Return the rows of mergekit's own tests and examples: how many merges of a file came out how, and why."""
    found = {}
    for row in _record("parity_mergekit_tests")["rows"]:
        found.setdefault((row["file"], row["status"], row["why"]), []).append(row)
    yield ["tests", "outcome", "merges", "largest difference", "in float32", "in float64", "methods", "why"]
    for (file, status, why), rows in found.items():
        worst = [max((row[key] for row in rows if row[key] is not None), default=None) for key in _MEASURED]
        methods = ", ".join(dict.fromkeys(row["method"] for row in rows))
        yield [file, status, str(len(rows)), *worst, methods, why]


def peers(record):
    """Return the rows of one peer."""
    yield ["method", "float32", "float64", "why", "with it"]
    for row in record["rows"]:
        yield ["fails" if key == "float32" and "error" in row else row[key] for key in _KEYS]


def means():
    """Return the rows of the means over random elements."""
    yield ["peer", "mean", "expected", "ours", "theirs", "standard deviation"]
    for peer in ("fusion_bench", "sd_mecha"):
        for row in _record(f"parity_{peer}")["means"]:
            expected = " / ".join(f"{x:.4g}" for x in dict.fromkeys(row["expected"].values()))
            yield [
                peer.replace("_", "-"),
                row["case"],
                expected,
                *(f"{row[k]:.4f}" for k in ("ours", "theirs", "deviation")),
            ]


def models():
    """Return the rows of the networks: the error at both sizes, and whose rounding it is."""
    yield ["network of", "architecture", "size", "ours to theirs", "ours to float64", "theirs to float64"]
    for row in [row for name in ("models", "encoders", "decoders") for row in _record(f"parity_{name}")["rows"]]:
        yield [row[key] for key in ("peer", "architecture", "size", "error", "ours to float64", "theirs to float64")]


def tokenizer():
    """Return the rows of the tokenizers: equal texts of all, for each peer."""
    groups = {}
    record = _record("parity_tokenizer")
    for row in record["rows"]:
        groups.setdefault(row["group"], {})[row["peer"]] = f"{row['equal']} of {row['texts']}"
    peers = list(record["peers"])
    yield ["texts", *peers]
    for group, by_peer in groups.items():
        yield [group, *(by_peer.get(peer) for peer in peers)]


def text_tokenizer():
    """Return the rows of the tokenizers of networks of texts: equal texts of all, for each form of a vocabulary."""
    forms = {}
    records = ("parity_text_tokenizer", "parity_decoder_tokenizer")  # the latter with --forms GPT-2 GGUF
    for row in [row for name in records for row in _record(name)["rows"]]:
        forms.setdefault(row["vocabulary"], {})[row["what"]] = f"{row['equal']} of {row['texts']}"
    whats = list(next(iter(forms.values())))
    yield ["vocabulary", *whats]
    for form, by_what in forms.items():
        yield [form, *map(by_what.get, whats)]


def multiple_choice():
    """Return the rows of scored questions: the largest differences, and the time of both where it was measured."""
    yield ["network", "questions of", "number", "log-likelihoods", "metrics", "seconds", "theirs", "theirs / ours"]
    for row in _record("parity_multiple_choice")["rows"]:
        timed = [f"{row[name]:.3g}" if name in row else None for name in ("seconds", "theirs", "ratio")]
        yield [row["network"], row["task"], str(row["questions"]), row.get("log-likelihoods"), row["metrics"], *timed]


_MEASURED = ("difference", "float32", "float64")
_KEYS = ("case", "float32", "float64", "why", "with it")


def _record(name):
    return json.loads((DOCS / "benchmarks" / f"{name}.json").read_text())


def _cell(value):
    if isinstance(value, float):
        return f"{value:.2g}"
    return "–" if value is None else str(value)


if __name__ == "__main__":
    main()
