"""Test the command that merges: what it prints, its exit codes, and the settings that it takes."""

import contextlib
import json
import os

import numpy as np
import pytest
import yaml

import soups
from soups.cli import main
from soups.files import locked
from soups.formats import write_safetensors
from soups.merging import methods_of


@pytest.fixture
def cli(monkeypatch, capsys):
    """Return a function that runs the command and returns (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "250")

    def run(*arguments):
        return main(["merge", *map(str, arguments)]), *capsys.readouterr()

    return run


@pytest.fixture
def refused(cli, tmp_path):
    """Check that a command fails with this message, and that it leaves nothing."""

    def check(*arguments, message):
        before = sorted(tmp_path.rglob("*"))
        code, _, err = cli(*arguments)
        assert code == 2 and err.startswith("soups merge: ") and err.count("\n") == 1
        assert message in err
        assert sorted(tmp_path.rglob("*")) == before

    return check


def method(name, models, *members, base="base"):
    base = ["--base", models[base]] if base else []
    return ["--method", name, *base, "--members", *(models[member] for member in members)]


def floats(leaves):
    return {name: leaf for name, leaf in leaves.items() if name != "model.position_ids"}


def test_merges_members_by_a_method_and_says_what_happens(cli, models, small, tmp_path):
    out = tmp_path / "deep" / "out[red]"
    code, printed, err = cli(*method("ties", models, "a", "b", "c"), "--density", 0.4, "--out", out)
    assert (code, err) == (0, "")
    size = sum(leaf.nbytes for leaf in small.tensors(0).values())
    assert "ties, as in the papers" in printed and "settings: scale 1.0, normalize True" in printed
    assert "weight 1.0, density 0.4" in printed and "copied, not merged: model.position_ids" in printed
    assert f"reads {4 * size / 1e3:.3g} kB, writes {size / 1e3:.3g} kB to {out}; about " in printed
    assert (
        "papers: trim task vectors, elect a sign for each element, average the members that agree (TIES) (Yadav"
        in printed
    )
    assert "beside the tensors: README.md, config.json, merge.json, recipe.yml, tokenizer.json" in printed
    assert f"wrote {out} in" in printed
    members = [floats(small.tensors(seed)) for seed in (1, 2, 3)]
    expected = soups.ties(members, base=floats(small.tensors(0)), density=0.4)
    merged = small.read(out)
    for name, array in expected.items():
        np.testing.assert_array_equal(merged[name], array)


def test_a_setting_may_have_one_value_per_member(cli, models, small, tmp_path):
    words = ["--weight", 1, "-2", "1e-1", "--scale=-0.5", "--out", tmp_path / "out"]
    assert cli(*method("task_arithmetic", models, "a", "b", "c"), *words)[0] == 0
    members = [floats(small.tensors(seed)) for seed in (1, 2, 3)]
    expected = soups.task_arithmetic(members, base=floats(small.tensors(0)), weights=[1, -2, 0.1], scale=-0.5)
    merged = small.read(tmp_path / "out")
    for name, array in expected.items():
        np.testing.assert_array_equal(merged[name], array)
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yml").read_text())
    assert [model["parameters"] for model in recipe["models"]] == [{"weight": 1}, {"weight": -2}, {"weight": 0.1}]
    # the recipe that the command wrote says the same
    assert cli(tmp_path / "out" / "recipe.yml", tmp_path / "again")[0] == 0
    for name, array in small.read(tmp_path / "again").items():
        np.testing.assert_array_equal(array, merged[name])


RECIPE = """
merge_method: dare_ties
base_model: {base}
models:
  - model: {a}
    parameters: {{weight: 1, density: [0.2, 0.8]}}
  - model: {b}
    parameters: {{weight: 0.5}}
parameters: {{density: 0.5}}
"""


@pytest.fixture
def recipe(models, tmp_path):
    path = tmp_path / "recipe.yml"
    path.write_text(RECIPE.format(**models))
    return path


def test_merges_a_recipe_and_verifies_it(cli, recipe, small, tmp_path):
    out = tmp_path / "out"
    options = ["--seed", 3, "--threads", 2, "--shard-size", "0.4kB"]
    code, printed, err = cli(recipe, out, *options)
    assert (code, err) == (0, "")
    assert "dare_ties, as in mergekit" in printed and "weight 1, density [0.2, 0.8]" in printed
    assert "with 2 threads" in printed and "seed 3" in printed and len(list(out.glob("*.safetensors"))) > 3
    assert (out / "mergekit_config.yml").read_text() == recipe.read_text()
    merged = small.merge(recipe.read_text(), tmp_path / "here", seed=3)
    for name, array in small.read(out).items():
        np.testing.assert_array_equal(array, merged[name])
    code, printed, err = cli("--verify", out)
    assert (code, err) == (0, "") and "bit for bit" in printed


def test_verify_exits_with_1_when_something_differs(cli, recipe, tmp_path):
    assert cli(recipe, tmp_path / "out")[0] == 0
    file = tmp_path / "out" / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, printed, _ = cli("--verify", tmp_path / "out")
    assert code == 1 and " differs from element " in printed and "bit for bit" not in printed
    code, _, err = cli("--verify", tmp_path)
    assert code == 2 and f"{tmp_path} has no record of a merge" in err


@pytest.mark.parametrize("kind", ["orbax", "pool"])
def test_verifies_checkpoints_and_members_of_pools(cli, small, recipe, models, tmp_path, kind):
    def place(name):
        return f"{tmp_path / 'pool'}:{name}" if kind == "pool" else tmp_path / name

    assert cli(recipe, place("right"), "--format", kind)[0] == 0
    code, printed, err = cli("--verify", place("right"))
    assert (code, err) == (0, "") and "bit for bit" in printed
    leaves = small.read(models["a"])
    leaves["model.layers.1.norm.bias"][2] += 1
    changed = small.write_model(tmp_path / "changed", leaves)
    recipe.write_text(recipe.read_text().replace(str(models["a"]), str(changed)))
    assert cli(recipe, place("wrong"), "--format", kind)[0] == 0
    write_safetensors(changed / "model.safetensors", small.read(models["a"]))
    code, printed, _ = cli("--verify", place("wrong"))
    assert code == 1 and f"{changed} is not the model that was merged" in printed
    assert "model.layers.1.norm.bias differs from element " in printed
    assert ("if it was merged with --sharded: the last bits may differ" in printed) == (kind == "orbax")


def test_a_dry_run_writes_nothing(cli, recipe, tmp_path):
    code, printed, err = cli(recipe, tmp_path / "out", "--dry-run")
    assert (code, err) == (0, "") and "reads" in printed and "wrote" not in printed
    assert list(tmp_path.iterdir()) == [recipe]


@pytest.mark.parametrize("words", ["--method ties --help", "--methods", "--methods ties fisher", "--dry-run"])
def test_what_is_printed_fits_a_terminal(words, models, small, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b"):
        own = {f"{name}{number}.position_ids": np.arange(4) for number in range(9)}
        small.write_model(tmp_path / name, small.tensors(0) | own)
    merge = ["--method", "ties", "--base", "base", "--members", "a", "b", "--out", "out"]
    with contextlib.suppress(SystemExit):
        assert main(["merge", *(merge if words == "--dry-run" else []), *words.split()]) == 0
    printed = capsys.readouterr().out
    assert printed and max(map(len, printed.splitlines())) <= 100


def test_the_settings_of_slerp_and_what_is_tied_are_shown(cli, models, small, tmp_path, write_torch):
    leaves = small.tensors(1)
    del leaves["lm_head.weight"]
    for name in ("x", "y"):
        write_torch(tmp_path / f"{name}.pt", leaves, {"lm_head.weight": "model.embed_tokens.weight"})
    words = ["--method", "slerp", "--t", "0.25", "--base", tmp_path / "x.pt", "--members", tmp_path / "y.pt"]
    code, printed, _ = cli(*words, "--out", tmp_path / "out", "--dry-run")
    assert code == 0 and "settings: t 0.25, scope leaf" in printed
    assert "tied, written once: lm_head.weight = model.embed_tokens.weight" in printed


def test_what_has_no_effect_is_said(cli, recipe, small, tmp_path):
    assert "int8_mask" not in cli(recipe, tmp_path / "out", "--dry-run")[1].replace("int8_mask False", "")
    recipe.write_text(recipe.read_text().replace("density: 0.5}", "density: 0.5, int8_mask: true}"))
    printed = cli(recipe, tmp_path / "out", "--dry-run")[1]
    assert "int8_mask has no effect here: masks are made block after block and never held" in printed


def test_what_bare_files_or_a_format_have_no_place_for_is_said(cli, recipe, small, tmp_path):
    paths = [write_safetensors(tmp_path / f"{name}.safetensors", small.tensors(1)) for name in "ab"]
    text = f"merge_method: linear\nmodels: [{', '.join(f'{{model: {p}, parameters: {{weight: 1}}}}' for p in paths)}]"
    recipe.write_text(f"{text}\ntokenizer_source: union\nchat_template: auto\n")
    code, printed, _ = cli(recipe, tmp_path / "out", "--dry-run")
    assert code == 0 and "tokenizer_source union has no effect: no model has a tokenizer" in printed
    assert "chat_template auto has no effect: no model has a template" in printed
    for kind, out in (("orbax", "out"), ("pool", "pool:out")):
        sharded = ["--sharded", "--threads", 1] if kind == "orbax" else []
        words = ["--dry-run", "--format", kind, "--shard-size", "1GB", *sharded]
        printed = cli(recipe, tmp_path / out, *words)[1]
        assert ("holds tensors alone; not written: chat_template" in printed) == (kind == "orbax")
        assert ("chat_template auto has no effect: no model has a template" in printed) == (kind == "pool")
        assert "--shard-size has no effect on " in printed
        assert ("--threads has no effect with --sharded" in printed) == bool(sharded)


def test_a_member_given_twice_is_shown_twice(cli, models, tmp_path):
    words = [*method("task_arithmetic", models, "base", "a", "a"), "--weight", 3, 2, 1, "--out", tmp_path / "out"]
    printed = cli(*words, "--dry-run")[1]
    rows = [line.split()[-2:] for line in printed.splitlines() if line.startswith(f"{models['a']} ")]
    assert rows == [["weight", "2"], ["weight", "1"]]
    assert f"weight of {models['base']} is ignored: it is the base itself" in printed


def test_fisher_files_are_settings_of_the_members(cli, refused, models, small, tmp_path):
    fishers = {x: tmp_path / f"{x}.safetensors" for x in ("base", "a", "b")}
    ones = {name: np.ones(shape, np.float32) for name, shape in small.shapes().items()}
    for factor, path in enumerate(fishers.values(), start=1):
        write_safetensors(path, {name: np.float32(factor) * leaf for name, leaf in ones.items()})
    words = ["--fisher", fishers["a"], fishers["b"], "--out", tmp_path / "out"]
    code, printed, err = cli(*method("fisher", models, "a", "b", base=None), *words)
    assert (code, err) == (0, "") and printed.count("  Fisher  ") == 2
    merged = small.read(tmp_path / "out")
    a, b, base = (floats(small.tensors(seed)) for seed in (1, 2, 0))
    for name in a:
        small.near(merged[name], (2.0 * a[name] + 3.0 * b[name]) / 5)
    words = ["--base_fisher", fishers["base"], "--fisher", fishers["a"], "--alpha", 0.25, "--out", tmp_path / "out2"]
    assert cli(*method("fisher_interpolate", models, "a"), *words)[0] == 0
    merged = small.read(tmp_path / "out2")
    for name in a:
        small.near(merged[name], (0.75 * base[name] + 0.25 * 2 * a[name]) / 1.25)
    one = [*method("fisher", models, "a", "b", base=None), "--fisher", fishers["a"], "--out", tmp_path / "never"]
    refused(*one, message="--fisher: one value for each of the 2 members")


def test_models_of_other_vocabularies_need_to_be_told_which_one_to_take(cli, small, tmp_path):
    for number, name in enumerate("ab"):
        leaves = {"embed.weight": np.full((2 + number, 3), number, np.float32)}
        tokens = {"model": {"vocab": {token: place for place, token in enumerate("xyz"[: 2 + number])}}}
        small.write_model(tmp_path / name, leaves, {"vocab_size": 2 + number}, json.dumps(tokens))
    words = ["--method", "linear", "--members", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "out"]
    code, printed, err = cli(*words)
    assert code == 2 and "instead of [2, 3]; tokenizer_source: base, union or a model would give" in err
    code, printed, err = cli(*words, "--tokenizer-source", "union")
    assert (code, err) == (
        0,
        "",
    ) and f"vocabulary: that of {tmp_path / 'a'}, with what others have beside it; 3 rows" in printed
    np.testing.assert_array_equal(small.read(tmp_path / "out")["embed.weight"], np.repeat([[0.5], [0.5], [1]], 3, 1))


def test_a_merge_may_become_a_member_of_a_pool(cli, refused, tmp_path):
    pool = soups.Pool(tmp_path / "pool")
    for seed, name in enumerate("ab"):
        pool.add(name, {"w": np.full(3, seed, np.float32)})
    words = ["--method", "linear", "--members", f"{pool.path}:a", f"{pool.path}:b", "--format", "pool", "--out"]
    code, printed, err = cli(*words, f"{pool.path}:soup")
    assert (code, err) == (0, "") and f"wrote {pool.path}:soup in" in printed
    np.testing.assert_array_equal(soups.Pool(pool.path)["soup"]["w"], [0.5] * 3)
    assert cli(*words, f"{pool.path}:dry", "--dry-run")[0] == 0 and "dry" not in soups.Pool(pool.path)
    refused(*words, f"{pool.path}:soup", message="has a member 'soup'")
    refused(*words, "nothing", message="a member of a pool is written as POOL:NAME, not 'nothing'")


def test_a_merge_may_be_sharded_over_all_devices(cli, refused, small, tmp_path):
    leaves = [{"w": np.full((8, 2), seed, np.float32)} for seed in (1, 4)]
    models = {name: small.write_model(tmp_path / name, leaf) for name, leaf in zip("ab", leaves, strict=True)}
    words = [*method("linear", models, "a", "b", base=None), "--sharded", "--out", tmp_path / "out"]
    code, printed, err = cli(*words, "--format", "orbax")
    assert (code, err) == (0, "") and "; on 8 devices, about " in printed
    np.testing.assert_array_equal(soups.pool.load_checkpoint(tmp_path / "out")["w"], np.full((8, 2), 2.5))
    refused(*words, message="--sharded writes an Orbax checkpoint: add --format orbax")
    orbax = [*words, "--format", "orbax"]
    refused(*orbax, "--memory", "2GB", message="--memory is for merges on the host")
    refused(*orbax, "--process", 0, message="--processes and --process go together")
    refused(*orbax, "--coordinator", "x:1", message="several hosts need --coordinator HOST:PORT, --processes and")
    refused(*orbax, "--processes", 2, "--process", 0, message="several hosts need --coordinator HOST:PORT")
    hosts = [*orbax, "--processes", 2, "--coordinator"]
    refused(*hosts, "x:1", "--process", 2, message="--process must be a number from 0 to --processes - 1, not 2")
    refused(*hosts, "x", "--process", 0, message="--coordinator must be HOST:PORT, or auto, not 'x'")
    alone = [word for word in orbax if word != "--sharded"]
    refused(*alone, "--coordinator", "auto", message="--coordinator needs --sharded")


def test_memory_lowers_the_threads_or_refuses(cli, refused, recipe, tmp_path):
    assert "with 8 threads" in cli(recipe, tmp_path / "out", "--dry-run", "--threads", 8)[1]
    few = cli(recipe, tmp_path / "out", "--dry-run", "--threads", 8, "--memory", "0.24GB")[1]
    number = int(few.split(" threads")[0].split()[-1])
    assert 1 <= number < 8 and int(few.split("about ")[1].split()[0]) <= 240
    refused(recipe, tmp_path / "out", "--memory", "100MB", message="needs about 23")


def test_lists_the_methods(cli):
    code, printed, _ = cli("--methods")
    assert code == 0
    assert all(f" {name} " in printed for name in [*methods_of("published"), *methods_of("mergekit")])
    assert "Yadav et al. 2023, 2306.01708" in printed
    assert "regmean_pp" in printed and "needs the networks to measure inputs with: use soups.regmean_pp" in printed


def test_what_is_asked_for_beside_a_recipe_is_recorded(cli, recipe, small, tmp_path):
    beside = ["--insist", "--keep-first", "model.norm.*", "--only-tensors", "model.(norm|layers).*"]
    assert cli(recipe, tmp_path / "out", *beside)[::2] == (0, "")
    given = yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())
    asked = {"keep_first": "model.norm.*", "only_tensors": "model.(norm|layers).*", "insist": True}
    assert given == yaml.safe_load(recipe.read_text()) | asked
    merged = small.read(tmp_path / "out")
    assert "lm_head.weight" not in merged
    np.testing.assert_array_equal(merged["model.norm.weight"], small.tensors(1)["model.norm.weight"])
    assert cli("--verify", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfem\x00", "must be a mapping with merge_method"),
        (b"\xe9", "is not text in UTF-8"),
        (b"a: [", "is not YAML"),
        (b"- a", "must be a mapping with merge_method"),
    ],
)
def test_a_recipe_that_is_none_is_named(refused, tmp_path, content, message):
    (tmp_path / "recipe.yml").write_bytes(content)
    for beside in ([], ["--insist"]):
        refused(tmp_path / "recipe.yml", tmp_path / "out", *beside, message=message)


def test_values_that_are_no_yaml_are_named(refused, models, tmp_path):
    words = [*method("ties", models, "a", "b"), "--out", tmp_path / "out"]
    refused(*words, "--density", "[0.2", message="--density: '[0.2' is not a YAML value")
    refused(*words, "--density", "{a: 1, a: 2}", message="--density: ")
    refused(*words, "--threads", "many", message="--threads must be a whole number, not 'many'")
    refused(*words, "--format", "gguf", message="unknown value of --format 'gguf'; there are: huggingface, orbax")


def test_out_must_be_new(refused, recipe, tmp_path):
    (tmp_path / "out").mkdir()
    refused(recipe, tmp_path / "out", message="out exists: choose a new path for the merge")


def test_a_second_merge_to_the_same_place_stops(cli, recipe, tmp_path):
    with locked(tmp_path / "out"):
        code, _, err = cli(recipe, tmp_path / "out")
    assert code == 2 and f"another merge is writing to {tmp_path / 'out'}: process {os.getpid()} on " in err
    assert cli(recipe, tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--method ties --density x --base {b} --members {a}", "--density must be a number, not 'x'"),
        ("--method ties --density .nan --base {b} --members {a}", "--density must be finite, not nan"),
        ("--method linear --weight 1 x --members {a} {b}", "--weight of {b} must be a number, not 'x'"),
        ("--method linear --members {a} --dtype f4", "unknown --dtype 'f4'; there are: "),
        ("--method linear --members {a} --out-dtype f4", "unknown --out-dtype 'f4'; there are: "),
        ("--method linear --members {a} --tokenizer-source x", "unknown --tokenizer-source 'x'; there are: "),
        ("--method linear --members {a} --keep-first (", "--keep-first must be a regular expression, not '('"),
        ("--method linear --members {a} --seed 9223372036854775808", "--seed must be a whole number that fits"),
        ("--method linear --members {a} --align {align}", "--align[0] must be [regex, axes], not ['a']"),
        ("--method slerp --base {b} --members {a} {c}", "slerp needs 1 member beside the base, but there are 2"),
        ("--method fisher --members {a} {b}", "fisher needs --fisher for {a}"),
    ],
)
def test_errors_about_options_name_them_as_they_are_given(refused, models, tmp_path, words, message):
    (tmp_path / "align.yml").write_text("[[a]]")
    names = {**models, "align": tmp_path / "align.yml"}
    given = [word.format(**names) for word in words.split()]
    refused(*given, "--out", tmp_path / "out", message=f"soups merge: {message.format(**names)}")


def test_mistakes_are_named(refused, models, recipe, tmp_path):
    out = tmp_path / "out"
    ties = method("ties", models, "a", "b")
    refused(
        *method("teis", models, "a"),
        "--out",
        out,
        message="unknown method 'teis' (did you mean 'ties'?); soups merge --methods lists all",
    )
    refused(*method("regmean_pp", models, "a"), "--out", out, message="method 'regmean_pp' needs the networks")
    refused(*method("regmean", models, "a"), "--out", out, message="regmean needs --grams for ")
    missing = ["--align", tmp_path / "none.yml", "--out", out]
    refused(*method("linear", models, "a", "b", base=None), *missing, message="--align: no file at ")
    refused(*ties, "--densty", 0.2, "--out", out, message="unknown option --densty (did you mean --density?)")
    linear = method("linear", models, "a", "b", base=None)
    none = "unknown option --density; linear has no setting density; it has normalize, weight"
    refused(*linear, "--density", 0.2, "--out", out, message=none)
    gone = "unknown option --favor; floor takes one number for each member: above 0"
    refused(*method("fisher", models, "a", base=None), "--favor", 1, "--out", out, message=gone)
    refused(*ties, "--density", "--out", out, message="--density needs a value")
    refused(*ties, "--weight", 1, 2, 3, "--out", out, message="--weight: one value, or one for each of the 2 members")
    refused(*ties, "--scale", 1, 2, "--out", out, message="--scale: one value, or one for each of the 2 members")
    refused(*method("ties", models, "a", base=None), "--out", out, message="soups merge: ties needs --base\n")
    refused(*method("ties", {**models, "a": "nowhere"}, "a"), "--out", out, message="no checkpoint at nowhere")
    only = ["--only", "mlp", "--out", out]
    refused(
        *method("iso_c", models, "a"),
        *only,
        message="only: 'mlp' does not match the whole name of any tensor; one is called",
    )
    refused(*ties, message="say what is merged and where to")
    refused(recipe, message="say what is merged and where to")
    refused(recipe, out, "--method", "ties", message="with --method there is no recipe file, but ")
    refused(recipe, out, "--density", 1, message="unknown option --density")
    refused(tmp_path / "nowhere.yml", out, message="no recipe file at")
    given = ["--dtype", "bfloat16", "--base", models["a"], "--members", models["b"]]
    refused(recipe, out, *given, message="settings belong in the recipe file: base_model, dtype, models")
    refused(recipe, out, "--threads", 0, message="--threads must be at least 1, not 0")
    refused(recipe, out, "--memory", "lots", message="'lots' is not a size; 2GB is one, with B, kB, MB, GB, TB")
    refused(recipe, out, "--shard-size", "5GiB", message="'5GiB' is not a size")
    refused(recipe, out, "--shard-size", "0.1B", message="--shard-size must be at least one byte, not 0.1B")
    for end in ("pth", "PTH", "Safetensors"):
        refused(
            recipe, f"{out}.{end}", message=f"out.{end} would be a folder: a merge writes folders, such as out, and"
        )
    named = [f"{out}.npz", "--format", "huggingface"]
    refused(recipe, *named, message="out.npz would be a folder: a merge writes folders")
    recipe.write_text("merge_method: dare-ties")
    refused(recipe, out, message="unknown merge_method 'dare-ties' (did you mean 'dare_ties'?)")


def test_a_disk_error_in_the_middle_is_named(cli, recipe, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        code, _, err = cli(recipe, tmp_path / "out")
    assert code == 2 and "model.safetensors: No space left on device" in err
    assert cli(recipe, tmp_path / "out")[0] == 0
    assert json.loads((tmp_path / "out" / "merge.json").read_text())["method"] == "dare_ties"
