"""Test that a user's file is run, once, and that its mistakes are named with their lines."""

import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import yaml

from soups import merging
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors
from soups.merging.sharded import merged_leaves
from soups.plugins import load_plugin
from soups.pool import Pool
from soups.recipes import METHODS, Recipe, method

METHOD = """
from soups.engine import Recipe
from soups.recipes import method


@method(base="required", summary="the base and a multiple of the first task vector")
def first_times(inputs, *, factor=2.0):
    return Recipe(lambda part, _: part.base + factor * part.vector(0))
"""
EXAMPLE = pathlib.Path(__file__).parent / "recipes" / "plugin_example.py"  # its other tests: test_contract.py


@pytest.fixture(autouse=True)
def no_method_stays():
    """Take the methods of a test's files away after it: other tests list all that are known."""
    known = dict(METHODS)
    yield
    for name in METHODS.keys() - known.keys():
        del METHODS[name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", "line 2: SyntaxError: invalid syntax"),
        ("\n\nimport no_such_module\n", "line 3: ModuleNotFoundError: No module named 'no_such_module'"),
        ("import json\njson.loads('{')\n", "line 2: JSONDecodeError: Expecting property name"),
        ("import sys\nsys.exit(3)\n", "line 2: SystemExit: 3; the file is imported: what it does as a script belongs"),
        ("import sys\nprint(sys.argv[1])\n", "line 2: IndexError: list index out of range; the file is imported: what"),
        ("é = '\ud800'", "SyntaxError"),
        ("a\0b", "SyntaxError: source code string cannot contain null bytes"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, text, message):
    file = tmp_path / "mine.py"
    file.write_bytes(text.encode("utf-8", "surrogatepass"))
    before = set(sys.modules)
    assert main(["merge", "--plugin", str(file), "--methods"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"soups merge: --plugin: {file}, ") and message in err and err.count("\n") == 1
    assert not [name for name in set(sys.modules) - before if "mine" in name]


def test_a_message_of_many_lines_is_printed_up_to_a_bound(tmp_path, capsys):
    file = tmp_path / "mine.py"
    file.write_text("def f(n):\n    raise ValueError('these are wrong:' + n * ('\\n' + 'x' * 900))\n\nf(COUNT)\n")
    text = file.read_text()
    for count, shown in [(2, 2), (30, 20)]:
        file.write_text(text.replace("COUNT", str(count)))
        assert main(["merge", "--plugin", str(file), "--methods"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == f"soups merge: --plugin: {file}, line 2: these are wrong:"
        assert lines[1:] == ["x" * 500] * shown if count == 2 else lines[20] == "  ... and 11 more"


@pytest.mark.parametrize(
    ("declared", "function", "message"),
    [
        ({"base": "requird"}, lambda inputs: None, "unknown base of <lambda> 'requird' .did you mean 'required'"),
        ({"per_member": ("weigths",)}, lambda inputs, *, weights=1.0: None, "unknown setting of <lambda> 'weigths'"),
        ({}, lambda: None, "<lambda> must take Inputs as its first parameter"),
        ({}, lambda inputs, **settings: None, "<lambda> must name each of its settings, instead of .*settings"),
        ({}, lambda inputs, *, table={}: None, "the default of table of <lambda> must not be a dict"),
        ({"scope": "leaf"}, lambda inputs: None, "unknown field of a method 'scope'"),
        ({"members": 2}, lambda inputs: None, r"members of <lambda> must be .smallest, largest. numbers, not 2"),
        ({"members": (3, 1)}, lambda inputs: None, r"members of <lambda> must be .*, not \(3, 1\)"),
        (
            {"per_member": "gain"},
            lambda inputs, *, gain=1.0: None,
            r"must be a tuple of names, \('gain',\), not 'gain'",
        ),
        ({}, lambda inputs, *, seed=7: None, "the default of the seed of <lambda> must be 0, that of every merge of"),
    ],
)
def test_a_declaration_without_a_sense_is_an_error(declared, function, message):
    with pytest.raises(ValueError, match=message):
        method(registry={}, summary="", **declared)(function)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (3, "must return a Recipe, not a int"),
        (
            Recipe(lambda part, _: part.leaves[0].sum()),
            r"the method makes an array of shape \(\) of w, not one of \(3, 2\)",
        ),
        (
            Recipe(lambda part, _: part.leaves[0].T),
            r"the method makes an array of shape \(2, 3\) of w, not one of \(3, 2\)",
        ),
        (Recipe(lambda part, _: part.base), "the method makes a NoneType of w, not an array of numbers"),
        (Recipe(lambda part, _: list(part.leaves[0])), "the method makes a list of w, not an array of numbers"),
        (
            Recipe(lambda part, _: np.full((3, 2), "x")),
            "the method makes an array of <U1 of w, not an array of numbers",
        ),
        (
            Recipe(lambda part, _: part.leaves[0].astype(np.complex64)),
            "the method makes complex numbers of w, which holds real ones",
        ),
    ],
)
@pytest.mark.parametrize("xp", [np, jax.numpy], ids=["host", "device"])
def test_what_a_method_makes_is_looked_at(made, message, xp):
    merge = method(registry={}, summary="")(lambda inputs: made)
    with pytest.raises(ValueError, match=message):
        merge([{"w": xp.ones((3, 2), np.float32)}])


def test_a_recipe_has_a_known_scope_and_unit():
    for wrong, message in [
        ({"scope": "layer"}, "unknown scope of a recipe 'layer'"),
        ({"unit": "rows"}, "did you mean 'row'"),
    ]:
        with pytest.raises(ValueError, match=message):
            Recipe(lambda part, _: part.leaves[0], **wrong)


@pytest.mark.parametrize("setting", ["threads", "shard_size", "keep_first_", "dtype", "verbose"])
def test_a_setting_that_an_option_of_the_command_hides_is_an_error(setting, tmp_path, capsys):
    name = f"hidden_{setting.rstrip('_')}"
    body = f"@method(summary='')\ndef {name}(inputs, *, {setting}=2.0):\n    return Recipe(lambda part, _: part.base)\n"
    (tmp_path / "mine.py").write_text(f"from soups.recipes import Recipe, method\n\n\n{body}")
    words = ["--plugin", tmp_path / "mine.py", "--method", name, "--members", "a", "--out", tmp_path / "out"]
    assert main(["merge", *map(str, words)]) == 2
    option = f"--{setting.rstrip('_').replace('_', '-')}"
    said = f"{option} is an option of the command, so it cannot give the setting {setting.rstrip('_')} of {name}: "
    assert capsys.readouterr().err == f"soups merge: {said}give that another name, or merge by a recipe file\n"


def test_a_file_is_run_once(tmp_path, capsys):
    file, count = tmp_path / "mine.py", tmp_path / "count"
    file.write_text(f"import pathlib\nwith open({str(count)!r}, 'a') as file:\n    file.write('x')\n")
    load_plugin(str(file))
    (tmp_path / "link.py").symlink_to(file)
    for name in (file, tmp_path / "link.py"):
        assert main(["merge", "--plugin", str(name), "--plugin", str(file), "--methods"]) == 0
    assert count.read_text() == "x"


@pytest.mark.parametrize(
    ("name", "message"), [("none.py", "no file at"), ("", "is not a path"), ("gs://a/b.py", "is a URL")]
)
def test_what_is_no_file_is_named(name, message, capsys):
    assert main(["merge", "--plugin", name, "--methods"]) == 2
    assert message in capsys.readouterr().err


def test_a_method_of_ones_own(tmp_path, quick_start):
    def soups(*words):
        command = [sys.executable, "-m", "soups", "merge", "--plugin", "mine.py", *words]
        done = subprocess.run(command, env=quick_start, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    (tmp_path / "mine.py").write_text(METHOD)
    arrays = {name: np.full(3, value, np.float32) for name, value in [("base", 1), ("a", 3)]}
    for name, array in arrays.items():
        write_safetensors(tmp_path / f"{name}.safetensors", {"w": array})
    assert "first_times" in soups("--methods")[1]
    assert "--factor" in soups("--method", "first_times", "--help")[1]
    words = ["--method", "first_times", "--base", "base.safetensors", "--members", "a.safetensors", "--out"]
    code, _, err = soups(*words, "out", "--factor", "3")
    assert (code, err) == (0, "")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "out").read("w"), [7, 7, 7])
    assert soups(*words, "never", "--fctor", "3")[2] == "soups merge: unknown option --fctor (did you mean --factor?)\n"
    recipe = yaml.safe_load((tmp_path / "out" / "recipe.yml").read_text())
    (tmp_path / "recipe.yml").write_text(yaml.safe_dump(recipe | {"parameters": {"factor": 5}}))
    assert soups("recipe.yml", "again")[::2] == (0, "")
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "again").read("w"), [11, 11, 11])
    assert soups("--verify", "again")[::2] == (0, "")


@pytest.fixture
def plugin(tmp_path):
    """Yield the path of a user's method, which is forgotten afterwards."""
    yield shutil.copy(EXAMPLE, tmp_path / "mine.py")
    METHODS.pop("sign_mean", None)


@pytest.fixture
def models(tmp_path):
    """Return the paths of a base and two members, and their trees."""
    rng = np.random.default_rng(0)
    trees = {name: {"w": rng.normal(size=(16, 8)).astype(np.float32)} for name in ("base", "a", "b")}
    paths = {name: write_safetensors(tmp_path / f"{name}.safetensors", leaves) for name, leaves in trees.items()}
    return paths, trees


def by_formula(trees, weights, scale):
    vectors = [trees[name]["w"].astype(np.float64) - trees["base"]["w"] for name in "ab"]
    total = sum(weight * vector for weight, vector in zip(weights, vectors, strict=True))
    return trees["base"]["w"] + scale * np.mean(np.abs(vectors)) * np.sign(total)


def test_a_users_method_is_one_of_all(plugin, models, tmp_path, capsys):
    paths, trees = models
    words = ["--plugin", str(plugin), "--method", "sign_mean", "--weight", "1", "2", "--scale", "0.5"]
    words += ["--base", str(paths["base"]), "--members", str(paths["a"]), str(paths["b"])]
    assert main(["merge", *words, "--out", str(tmp_path / "out")]) == 0
    expected = by_formula(trees, [1.0, 2.0], 0.5)
    merged = open_checkpoint(tmp_path / "out").read("w")
    np.testing.assert_allclose(merged, expected, rtol=1e-5, atol=1e-6)

    entries = [{"model": str(paths[name]), "parameters": {"weight": weight}} for name, weight in (("a", 1), ("b", 2))]
    recipe = {"merge_method": "sign_mean", "vocabulary": "published", "models": entries, "parameters": {"scale": 0.5}}
    file = tmp_path / "recipe.yml"
    file.write_text(yaml.safe_dump(recipe | {"base_model": str(paths["base"])}))
    assert main(["merge", str(file), "--plugin", str(plugin), "--out", str(tmp_path / "again")]) == 0
    np.testing.assert_array_equal(open_checkpoint(tmp_path / "again").read("w"), merged)

    plan = merging.plan(merging.parse_recipe(file.read_text()), merging.open_model)
    sharded = merged_leaves(plan)["w"]
    assert len(sharded.sharding.device_set) == len(jax.devices())
    # the mean is half a sum in float32, over 256 elements in any order
    np.testing.assert_allclose(sharded, expected, rtol=0, atol=256 * 2**-24)

    pool = Pool(tmp_path / "pool")
    for name in "ab":
        pool.add(name, trees[name])
    method = sys.modules[METHODS["sign_mean"].function.__module__].sign_mean
    streamed = method(pool, base=trees["base"], weights={"b": 2.0, "a": 1.0}, scale=0.5)["w"]
    np.testing.assert_array_equal(streamed, merged)

    capsys.readouterr()
    assert main(["merge", "--plugin", str(plugin), "--methods"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "sign_mean" in printed and "move each element by the mean magnitude" in printed


def test_a_name_that_is_taken_is_an_error(plugin, tmp_path, capsys):
    ours = METHODS["ties"]
    file = tmp_path / "taken.py"
    file.write_text(plugin.read_text().replace("sign_mean", "ties"))
    assert main(["merge", "--plugin", str(file), "--methods"]) == 2
    message = "there is already a method 'ties', in soups.recipes.task_vectors: choose another name"
    assert message in capsys.readouterr().err
    assert METHODS["ties"] is ours
    load_plugin(str(plugin))
    second = shutil.copy(plugin, tmp_path / "second.py")
    assert main(["merge", "--plugin", str(second), "--methods"]) == 2
    assert "there is already a method 'sign_mean'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return Recipe(lambda part, _: {}[part.name])", 6),
        ("return Recipe(lambda part, _: part.leaves[0], lambda parts: [1 / 0 for part in parts()])", 6),
        ("raise TypeError(f'no {inputs.number}')", 6),
    ],
    ids=["merge", "measure", "recipe"],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_what_a_method_raises_is_one_line_with_method_tensor_and_cause(tmp_path, models, capsys, body, line, sharded):
    file = tmp_path / "mine.py"
    file.write_text(f"from soups.recipes import Recipe, method\n\n\n@method()\ndef wrong(inputs):\n    {body}\n")
    words = ["--plugin", str(file), "--method", "wrong", "--members", *(str(models[0][name]) for name in "ab")]
    words += ["--format", "orbax", "--sharded"] if sharded else []
    assert main(["merge", *words, "--out", str(tmp_path / "out")]) == 2
    METHODS.pop("wrong")
    cause = "KeyError: 'w'" if "{}" in body else "ZeroDivisionError: " if "1 / 0" in body else "TypeError: no 2"
    err = capsys.readouterr().err
    assert err.startswith(f"soups merge: wrong of w: {cause}")
    assert err.endswith(f"({file}, line {line})\n") and err.count("\n") == 1


def test_damage_is_not_taken_for_a_fault_of_a_method(plugin, models, tmp_path, capsys):
    paths, trees = models
    write_safetensors(paths["a"], {"w": np.full_like(trees["a"]["w"], np.nan)})
    words = ["--method", "sign_mean", "--base", str(paths["base"]), "--members", str(paths["a"])]
    assert main(["merge", "--plugin", str(plugin), *words, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"soups merge: {paths['a']}: w holds NaN or infinity; leave it out\n"
