"""Test the card of a merged model: what it claims, what it does not, and that nothing in a name breaks it."""

import dataclasses
import json

import numpy as np
import pytest
import yaml

from soups import merging
from soups.cli import main
from soups.merging.card import model_card
from soups.merging.record import record
from soups.pool import Pool


@pytest.fixture
def hub(small, tmp_path, monkeypatch):
    """Return a function that puts a model with a card into the cache of the hub."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))

    def add(name, seed, card=""):
        model = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        folder = small.write_model(model / "snapshots" / f"{seed:040x}", small.tensors(seed))
        (folder / "README.md").write_text(card)
        (model / "refs").mkdir()
        (model / "refs" / "main").write_text(f"{seed:040x}")

    return add


@pytest.fixture
def locals_(small, tmp_path):
    """Return a function that writes local models with these headers of cards, and returns the plan of their mean."""

    def make(*headers, names=None, method="linear"):
        paths = []
        for seed, header in enumerate(headers):
            name = names[seed] if names else f"m{seed}"
            paths.append(small.write_model(tmp_path / name, small.tensors(seed)))
            if header is not None:
                (paths[-1] / "README.md").write_text(header)
        members = [{"model": path, "parameters": {"weight": 1}} for path in paths]
        return small.plan({"merge_method": method, "models": members})

    return make


def opened(*models, base=None, method="linear"):
    recipe = {"merge_method": method, "models": [{"model": str(m), "parameters": {"weight": 1}} for m in models]}
    recipe |= {"base_model": base} if base else {}
    return merging.plan(merging.parse_recipe(yaml.safe_dump(recipe, sort_keys=False)), merging.open_model)


def header(card):
    start, front, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front)


def test_the_header_has_the_ids_of_the_hub_and_what_all_models_state(hub, small, models):
    stated = "---\nlicense: mit\nlanguage: [en, no]\npipeline_tag: text-generation\nlibrary_name: x\n---\n# A model\n"
    for seed, name in enumerate(("org/base", "org/a", "org/b")):
        hub(name, seed, stated)
    assert header(small.card(opened("org/a", "org/b@main", base="org/base", method="task_arithmetic"))) == {
        "base_model": ["org/base", "org/a", "org/b"],
        "base_model_relation": "merge",
        "library_name": "x",
        "pipeline_tag": "text-generation",
        "language": ["en", "no"],
        "license": "mit",
        "tags": ["merge", "soups"],
    }
    card = small.card(opened("org/a", models["c"]))
    assert header(card) == {"base_model": ["org/a"], "base_model_relation": "merge", "tags": ["merge", "soups"]}
    assert f"[org/a](https://huggingface.co/org/a/tree/{1:040x}) | member" in card and "| `c` | member" in card
    assert f"hf download org/a --revision {1:040x}\nsoups merge --verify .\n" in card
    assert "No id on the hub is known of 1 of them: merge.json has their paths." in card


LICENCES = {
    "one states none": (["---\nlicense: mit\n---\n", None], {}),
    "two differ": (["---\nlicense: mit\n---\n", "---\nlicense: apache-2.0\n---\n"], {}),
    "one has no header": (["---\nlicense: mit\n---\n", "license: mit\n"], {}),
    "one is no YAML": (["---\nlicense: mit\n---\n", "---\nlicense: mit\na: [\n---\n"], {}),
    "one says it twice": (["---\nlicense: mit\n---\n", "---\nlicense: mit\nlicense: gpl\n---\n"], {}),
    "no text": (["---\nlicense: {a: b}\n---\n"] * 2, {}),
    "several lines": (['---\nlicense: "mit\\n---\\n# free"\n---\n'] * 2, {}),
    "names differ": ([f"---\nlicense: other\nlicense_name: {name}\n---\n" for name in "ab"], {}),
    "the same": (["---\r\nlicense: mit\r\n---\r\n", "\n---\nlicense: mit\n---"], {"license": "mit"}),
    "a name and a link": (
        ["---\nlicense: other\nlicense_name: own\nlicense_link: LICENSE\n---\n"] * 2,
        {"license": "other", "license_name": "own", "license_link": "LICENSE"},
    ),
    "hostile": (['---\nlicense: "a: b #\'"\n---\n'] * 2, {"license": "a: b #'"}),
}


@pytest.mark.parametrize("case", LICENCES)
def test_a_licence_is_claimed_if_all_models_state_it_and_only_then(case, locals_, small):
    headers, expected = LICENCES[case]
    plan = locals_(*headers)
    card = small.card(plan)
    assert {name: text for name, text in header(card).items() if name.startswith("license")} == expected
    if expected:
        assert f"All models state `{expected['license']}`" in card and merging.folder_notes(plan) == []
    else:
        assert "None is stated here, because the models' cards do not all state the same one" in card
        assert "the card states no licence: not all models state the same one" in merging.folder_notes(plan)


def test_models_without_cards_claim_nothing_and_say_so_on_the_card_alone(locals_, small):
    plan = locals_(None, None)
    assert "* `m0`: none\n* `m1`: none" in small.card(plan) and merging.folder_notes(plan) == []


def test_a_card_beside_a_bare_file_is_not_the_models(small, tmp_path):
    folder = small.write_model(tmp_path / "m", small.tensors(0))
    (folder / "config.json").unlink()
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")  # of a project, as it may be
    plan = small.plan({"merge_method": "passthrough", "models": [folder / "model.safetensors"]})
    assert "license" not in header(small.card(plan))


def test_the_licence_of_an_adapter_counts(write_lora, small, tmp_path):
    model = small.write_model(tmp_path / "m", small.tensors(0))
    adapter = write_lora("model.layers.0.self_attn.q_proj", 6)
    for folder, text in ((model, "mit"), (adapter, "gpl")):
        (folder / "README.md").write_text(f"---\nlicense: {text}\n---\n")
    plan = small.plan({"merge_method": "passthrough", "models": [f"{model}+{adapter}"]})
    card = small.card(plan)
    assert "license" not in header(card) and "* `m`: `mit`\n* `lora`: `gpl`" in card and "| `m` + `lora` |" in card


def test_the_library_is_transformers_where_the_config_says_so(small, tmp_path):
    model = small.write_model(tmp_path / "m", small.tensors(0), {"model_type": "llama", "num_hidden_layers": 3})
    plan = {"merge_method": "passthrough", "models": [model]}
    assert "library_name" not in header(small.card(small.plan(plan)))  # which other libraries write too
    config = {"model_type": "llama", "num_hidden_layers": 3, "architectures": ["LlamaForCausalLM"]}
    (model / "config.json").write_text(json.dumps(config))
    assert header(small.card(small.plan(plan)))["library_name"] == "transformers"


HOSTILE = [
    "a: [b] # c", "a\n---\nlicense: mit\n---\n# b", "x|y` ``z", "<script>b</script>", "[a](http://b)", "\x1b[31mred",
    "---", "'\"&*!%@", "é ü 文", "a" * 250,
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_card_is_whole_whatever_names_hold(name, locals_, small):
    card = small.card(locals_(None, None, names=[name, "other"]))
    assert header(card) == {"base_model_relation": "merge", "tags": ["merge", "soups"]}
    table = card.split("## Models\n\n")[1].split("\n\n")[0].splitlines()
    assert len(table) == 4 and all(line.replace(r"\|", "").count("|") == 4 for line in table)
    assert "\x1b" not in card.split("## Recipe")[0] and "`" in table[2]
    assert not any(line.startswith(("#", "---", "<")) and "A merge" not in line for line in table)


def test_a_fence_is_longer_than_those_in_the_recipe(small, models):
    text = f"# a fence ```` in a comment\nmerge_method: passthrough\nmodels: [{models['a']}]\n"
    assert f"\n`````yaml\n{text}`````\n" in small.card(small.plan(text))


def test_names_that_are_no_utf8_are_written(small, tmp_path):
    plan = opened(small.write_model(tmp_path / "m", small.tensors(0)))
    source = dataclasses.replace(plan.job.slices[0].sources[0], model="/x/\udcff")
    job = dataclasses.replace(plan.job, slices=(dataclasses.replace(plan.job.slices[0], sources=(source,)),))
    plan = dataclasses.replace(plan, job=job, checkpoints={"/x/\udcff": plan.checkpoints[plan.job.models[0]]})
    assert r"`\udcff`" in model_card(plan, record(plan, {})).encode().decode()


# --- Numbers ---


def test_the_table_has_the_digests_of_the_record_and_what_a_pool_measured(small, tmp_path):
    pool, base = Pool(tmp_path / "pool"), {"w": np.ones(3, np.float32)}
    pool.add("a", base, metrics={"held_out_accuracy": 0.87654, "epoch": 3, "history": [1]})
    pool.add("b|c", {"w": np.zeros(3, np.float32)}, metrics={"held_out_loss": 1.5, "held_out_accuracy": 0.5})
    plan = opened(f"{pool.path}:a", f"{pool.path}:b|c")
    out = merging.merge_to_folder(plan, tmp_path / "out", files=merging.folder_files(plan))
    digests = [entry["digest"] for entry in merging.read_record(out)["inputs"].values()]
    table = (out / "README.md").read_text().split("## Models\n\n")[1].splitlines()[:4]
    assert table == [
        "| model | role | `held_out_accuracy` | `held_out_loss` | digest |",
        "| --- | --- | --- | --- | --- |",
        f"| `pool:a` | member | 0.8765 |  | `{digests[0]}` |",
        rf"| `pool:b\|c` | member | 0.5 | 1.5 | `{digests[1]}` |",
    ]


def test_the_score_that_chose_the_recipe_is_on_the_card(small, models):
    plan = small.plan({"merge_method": "passthrough", "models": [models["a"]]})
    chosen = {"score": 0.8125, "metric": "acc", "evaluation": "python `e` {model}", "steps": [{}, {}]}
    card = model_card(plan, record(plan, {}, chosen))
    assert "0.8125 (`acc`): the best among 2 candidates by ``python `e` {model}``." in card
    assert "## Score" not in model_card(plan, record(plan, {}, {"score": None, "steps": []}))


@pytest.mark.parametrize(
    ("method", "papers", "keys"),
    [
        ("dare_ties", ["Yu et al. 2023, [arXiv 2311.03099]", "Yadav et al. 2023, "], ["yu2023", "yadav2023"]),
        ("task_arithmetic", ["Ilharco et al. 2022, [arXiv 2212.04089](https://arxiv.org/abs/"], ["ilharco2022"]),
        ("nearswap", [], []),
    ],
)
def test_the_papers_of_a_method_can_be_cited(small, models, method, papers, keys):
    recipe = {"merge_method": method, "base_model": models["base"], "models": [models["a"]]}
    recipe |= {"parameters": {"t": 0.1} if method == "nearswap" else {"weight": 1}}
    card = small.card(small.plan(recipe))
    assert all(f"* {paper}" in card for paper in papers) and ("## Papers" in card) == bool(papers)
    assert [key for key in keys if f"@misc{{{key},\n  author = {{" in card] == keys
    assert card.count("@misc{") == len(keys) and card.count("and others") == len(keys)


# --- The same merge, the same bytes ---


def test_the_card_is_the_same_for_the_same_merge_and_verified(small, models, tmp_path, monkeypatch, capsys):
    words = ["merge", "--method", "ties", "--base", models["base"], "--members", models["a"], models["b"], "--out"]
    for at, out in enumerate(("one", "two")):
        (tmp_path / f"cwd{at}").mkdir()
        monkeypatch.chdir(tmp_path / f"cwd{at}")
        assert main([*map(str, words), str(tmp_path / out), "--threads", str(1 + at)]) == 0
    assert small.content(tmp_path / "one") == small.content(tmp_path / "two")
    assert set(merging.read_record(tmp_path / "one")["files"]) == {
        *("README.md", "config.json", "recipe.yml", "tokenizer.json")
    }
    assert main(["merge", "--verify", str(tmp_path / "one")]) == 0
    capsys.readouterr()
    (tmp_path / "one" / "README.md").write_text("mine")
    (tmp_path / "one" / "config.json").unlink()
    assert main(["merge", "--verify", str(tmp_path / "one")]) == 1
    assert capsys.readouterr().out == "README.md was changed since it was written\nconfig.json is missing\n"


@pytest.mark.parametrize("files", [{"../secret": "0"}, {"": "0"}, {"nothing": "0"}, {"README.md": 3}])
def test_a_record_that_names_other_files_is_not_followed(small, models, tmp_path, files, capsys):
    (tmp_path / "secret").write_text("mine")
    small.merge({"merge_method": "passthrough", "models": [models["a"]]}, tmp_path / "out", files=True)
    note = tmp_path / "out" / "merge.json"
    known = json.loads(note.read_text())
    note.write_text(json.dumps(known | {"files": files}))
    assert main(["merge", "--verify", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert any(f"{name} {what}" in printed for name in files for what in ("is missing", "was changed since"))
    note.write_text(json.dumps(known | {"files": []}))
    assert main(["merge", "--verify", str(tmp_path / "out")]) == 2
    del known["files"]  # as older records are
    note.write_text(json.dumps(known))
    assert main(["merge", "--verify", str(tmp_path / "out")]) == 0
