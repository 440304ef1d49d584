"""Test that what a member of a pool came from survives the way through it: names, ties, dtypes, files, licences."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
import yaml

from soups import merging
from soups.cli import main
from soups.formats import open_checkpoint, write_safetensors
from soups.pool import Pool, PoolCorruptionError, save_checkpoint

BESIDE = {
    **{"LICENSE": b"free", "README.md": b"---\nlicense: mit\nlanguage: en\n---\n# Mine\n", "empty.txt": b""},
    **{"1_Pooling/config.json": b'{"dim": 6}', "notes.txt": b"x\n" * 50_000, "own code.py": "x = 'ä'".encode()},
    **{"config.json": b'{"model_type":  "own", "torch_dtype": "bfloat16"}', "tokenizer.json": b'{"a": 0}'},
}
KEPT = ["origin.json", *(f"origin/{name}" for name in BESIDE)]
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


@pytest.fixture
def cli(capsys, monkeypatch, tmp_path):
    """Return a function that runs a command in an empty folder and returns (exit code, output, errors)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*words):
        return main(
            [one for word in words for one in ([str(word)] if isinstance(word, pathlib.Path) else word.split())]
        ), *capsys.readouterr()

    return run


@pytest.fixture
def ok(cli):
    """Return a function that runs a command which succeeds, and returns its output."""

    def run(*words):
        code, out, err = cli(*words)
        assert (code, err) == (0, ""), (out, err)
        return out

    return run


@pytest.fixture
def write(small, write_torch):
    """Return a function that writes a folder of a kind with all that may lie beside weights."""

    def write_folder(folder, seed=1, kind="plain"):
        folder = pathlib.Path(folder)
        leaves = {name: leaf for name, leaf in small.tensors(seed).items() if name not in TIED}
        if kind == "torch":
            folder.mkdir()
            write_torch(folder / "pytorch_model.bin", _floats(leaves), TIED)
        else:
            leaves = {name: leaf.astype(ml_dtypes.bfloat16) for name, leaf in _floats(leaves).items()}
            leaves |= {"model.norm.weight": small.tensors(seed)["model.norm.weight"], "a.ids": np.arange(4)}
            folder.mkdir()
            write_safetensors(folder / "model.safetensors", leaves, {"format": "pt", **TIED})
        if kind == "sharded":
            recipe = {"merge_method": "passthrough", "models": [{"model": folder}]}
            merging.merge_to_folder(small.plan(recipe), folder.with_name("shards"), shard_bytes=200)
            shutil.rmtree(folder)
            folder.with_name("shards").rename(folder)
            (folder / "merge.json").unlink()
            assert len(list(folder.glob("*.safetensors"))) > 2
        for name, content in BESIDE.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    return write_folder


def _floats(leaves):
    return {name: leaf for name, leaf in leaves.items() if leaf.dtype.kind == "f"}


def tensors(path):
    """Return the shape, dtype and bytes of each tensor of a checkpoint, and what is tied to what."""
    there = open_checkpoint(path)
    found = {name: (leaf.shape, leaf.dtype.name, there.read(name).tobytes()) for name, leaf in there.leaves.items()}
    return found, dict(there.aliases)


def beside(folder):
    """Return the files of a folder without its weights."""
    files = {path.relative_to(folder).as_posix(): path for path in pathlib.Path(folder).rglob("*") if path.is_file()}
    weights = (".safetensors", ".index.json", ".bin")
    return {name: path.read_bytes() for name, path in files.items() if not name.endswith(weights)}


# --- There and back ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "sharded", "torch"])
def test_a_folder_comes_back_to_the_bit(kind, ok, write):
    source = write("source", kind=kind)
    ok("pool add pool a", source)
    assert ok("pool export pool:a out") == "wrote out\n"
    assert tensors("out") == tensors(source) and tensors("out")[1] == TIED
    there = beside("out")
    record = json.loads(there.pop("merge.json"))
    assert there == BESIDE and set(record["files"]) == set(BESIDE)
    assert ok("merge --verify out") == "out is what its recipe and its models give, bit for bit\n"
    assert ok("pool verify pool").split()[-2:] == ["a", "ok"]


def test_shards_are_of_the_size_that_is_asked_for(ok, write):
    source = write("source")
    ok("pool add pool a", source)
    ok("pool export pool:a out --shard-size 200B")
    assert max(path.stat().st_size for path in pathlib.Path("out").glob("model-*.safetensors")) < 200 + 2000
    assert len(json.loads(pathlib.Path("out/model.safetensors.index.json").read_text())["weight_map"]) == 15
    assert tensors("out") == tensors(source)


@pytest.mark.parametrize("end", ["safetensors", "npz"])
def test_a_file_comes_back_with_its_names(end, small, ok):
    leaves = small.tensors(1)
    if end == "npz":
        np.savez("source.npz", **leaves)
    else:
        write_safetensors("source.safetensors", leaves)
    pathlib.Path("letter.txt").write_text("private")
    ok("pool add pool a", f"source.{end}")
    assert Pool("pool").tensors("a").kept_names == ["origin.json"]
    for out in ("out.safetensors", "out.npz"):
        assert ok("pool export pool:a", out) == f"wrote {out}\n"
        assert tensors(out)[0] == tensors(f"source.{end}")[0]
    assert "pool:a came with no config.json, so there is none in the folder\n" in ok("pool export pool:a out")
    assert set(beside("out")) == {"merge.json"}


def test_what_has_no_place_in_a_file_is_said(ok, write):
    source = write("source")
    ok("pool add pool a", source)
    out = ok("pool export pool:a out.safetensors")
    assert out.startswith("out.safetensors holds tensors alone; not written: 1_Pooling/config.json, LICENSE, README.md")
    assert tensors("out.safetensors") == tensors(source)
    ok("pool export pool:a orbax --format orbax")
    there = merging.open_model("orbax")
    assert {name.replace("/", "."): there.read(name).tobytes() for name in there.leaves} == {
        name: content for name, (_, _, content) in tensors(source)[0].items()
    }


def test_an_adapter_comes_back_as_part_of_its_model(small, ok, write, write_lora):
    source, lora = write("source"), write_lora("model.layers.0.self_attn.q_proj", 6)
    (lora / "vocab.txt").write_text("a\n")
    (lora / "README.md").write_text("---\nlicense: other\n---\n")
    ok("pool add pool a", f"{source}+{lora}")
    ok("pool export pool:a out")
    ok("merge --method passthrough --members", f"{source}+{lora}", "--out", "merged")
    named, expected = (tensors(path) for path in ("out", "merged"))
    name = "model.layers.0.self_attn.q_proj.weight"  # in the pool in float32, as it was added up
    changed = open_checkpoint("out").read(name)
    assert changed.dtype == np.float32
    np.testing.assert_array_equal(changed, open_checkpoint(source).read(name).astype(np.float32) + 1)
    del named[0][name], expected[0][name]
    assert named == expected
    there = beside("out")
    assert "tokenizer.json" not in there and there["vocab.txt"] == b"a\n"  # as merged: those of the adapter
    assert {name: there[name] for name in ("config.json", "LICENSE")} == {
        name: BESIDE[name] for name in ("config.json", "LICENSE")
    }


def test_what_is_copied_between_pools_stays(ok, write):
    source = write("source")
    ok("pool add pool a", source)
    ok("pool add other b pool:a")
    shutil.rmtree("pool")
    ok("pool export other:b out")
    there = beside("out")
    del there["merge.json"]
    assert tensors("out") == tensors(source) and there == BESIDE


def test_a_pool_keeps_the_small_files_and_no_weights_twice(ok, write):
    source = write("source")
    (source / "pytorch_model.bin").write_bytes(b"x" * 1_000_000)
    (source / "checkpoint-5").mkdir()
    (source / "checkpoint-5" / "optimizer.pt").write_bytes(b"x" * 1_000_000)
    assert f"not copied from {source}: checkpoint-5/, pytorch_model.bin\n" in ok("pool add pool a", source)
    assert sorted(Pool("pool").tensors("a").kept_names) == sorted(KEPT)
    kept = sum(map(len, BESIDE.values()))
    weights = sum(leaf.nbytes for leaf in open_checkpoint(source).leaves.values())
    size = sum(path.stat().st_size for path in pathlib.Path("pool").rglob("*") if path.is_file())
    assert kept + weights < size < kept + weights + 50_000
    assert "origin/tokenizer.json" in ok("pool show pool a")


# --- Damage -----------------------------------------------------------------------------------------------------------


def _flip(path):
    content = bytearray(path.read_bytes() or b"\0")
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {"flipped": _flip, "missing": pathlib.Path.unlink, "longer": lambda path: path.write_bytes(b"\n" * 9)}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", KEPT)
def test_damage_to_any_kept_file_is_named(name, damage, cli, ok, write):
    ok("pool add pool a", write("source"))
    (file,) = [path for path in pathlib.Path("pool").rglob("*") if path.as_posix().endswith(f"/kept/files/{name}")]
    DAMAGES[damage](file)
    problem = "is missing" if damage == "missing" else "does not have the bytes that were written"
    commands = ["pool export pool:a out", "merge --method linear --members pool:a --out out", "pool add other a pool:a"]
    for command in commands:
        code, _, err = cli(command)
        assert code == 2 and err.count("\n") == 1 and not pathlib.Path("out").exists()
        assert err.endswith(f"kept/files/{name} {problem}\n") and "member 'a' is corrupted" in err
    code, out, _ = cli("pool verify pool")
    assert code == 1 and f"kept/files/{name} {problem}" in out
    with pytest.raises(PoolCorruptionError, match=problem):
        Pool("pool")["a"]


def test_a_file_that_was_put_beside_the_kept_ones_is_named(cli, ok, write):
    ok("pool add pool a", write("source"))
    (folder,) = pathlib.Path("pool").rglob("kept/files/origin")
    (folder / "modeling_own.py").write_text("import os")
    code, _, err = cli("pool export pool:a out")
    assert code == 2 and err.endswith("kept/files/origin/modeling_own.py was put there\n")


def test_a_flipped_bit_in_a_tensor_is_one_line(cli, ok, write):
    ok("pool add pool a", write("source"))
    (file,) = pathlib.Path("pool").rglob("state/model.norm.weight/0")
    _flip(file)
    code, _, err = cli("pool export pool:a out")
    assert (code, err.count("\n")) == (2, 1) and "model.norm.weight) does not have the bytes that were written" in err
    assert not pathlib.Path("out").exists()


INDEX = "model.safetensors.index.json"
INDEX_DAMAGES = {
    "cut": (lambda text: text[:-9], f"{INDEX} is not valid JSON"),
    "flipped": (lambda text: text.replace("model.norm.weight", "model.norm.weighu"), "lacks 'model.norm.weighu'"),
    "other": (lambda text: text.replace("-00002-of", "-00012-of"), f"{INDEX} names shards that do not exist"),
    "empty": (lambda text: "", f"{INDEX} is empty"),
    "outside": (lambda text: text.replace("model-00002", "../model-00002"), "is not a file of this folder"),
    "nothing": (lambda text: "{}", f"{INDEX} must have a weight_map"),
}


@pytest.mark.parametrize("damage", INDEX_DAMAGES)
def test_a_damaged_index_of_shards_is_named_on_both_ways(damage, cli, ok, write):
    change, message = INDEX_DAMAGES[damage]
    source = write("source", kind="sharded")
    ok("pool add pool a", source)
    ok("pool export pool:a out --shard-size 200B")
    for folder, command in ((source, "pool add new a source"), (pathlib.Path("out"), "merge --verify out")):
        (folder / INDEX).write_text(change((folder / INDEX).read_text()))
        code, _, err = cli(command)
        assert code == 2 and message in err
    assert not pathlib.Path("new").exists()


@pytest.mark.parametrize("index", ["{}", '{"format": "soups.origin/9"}', '{"format": "soups.origin/1", "names": []}'])
def test_an_index_that_is_not_known_is_refused(index, cli):
    Pool("pool").add("a", {"w": np.ones(3)}, files={"origin.json": index})
    code, _, err = cli("pool export pool:a out")
    assert (code, err.count("\n")) == (2, 1)
    assert "origin.json does not say what member 'a' came from in the format 'soups.origin/1'" in err


def test_a_damaged_config_is_said_before_it_is_kept(cli, write):
    source = write("source")
    (source / "config.json").write_text("{")
    code, _, err = cli("pool add pool a", source)
    assert code == 2 and "config.json is not valid JSON" in err and not pathlib.Path("pool").exists()


# --- Merges over members ----------------------------------------------------------------------------------------------


def _folders(write, ok):
    for seed, name in enumerate("abc", 1):
        ok("pool add pool", name, write(name, seed))


@pytest.mark.parametrize("kind", ["plain", "sharded", "torch"])
def test_a_merge_of_members_is_that_of_their_folders(kind, ok, write):
    for seed, name in enumerate("abc", 1):
        ok("pool add pool", name, write(name, seed, kind))
    words = "merge --method ties --density 0.5 --shard-size 500B"
    ok(f"{words} --base a --members b c --out folders")
    ok(f"{words} --base pool:a --members pool:b pool:c --out members")
    expected, there = (
        {path.name: path.read_bytes() for path in pathlib.Path(x).iterdir() if path.is_file()}
        for x in ("folders", "members")
    )
    for name in ("recipe.yml", "merge.json"):  # which say what was merged
        del expected[name], there[name]
    assert there.pop("README.md").replace(b"pool:", b"") == expected.pop("README.md")
    assert there == expected and len(there) > 7


def test_a_soup_in_a_pool_comes_back_as_the_merge_into_a_folder(ok, write):
    _folders(write, ok)
    words = "merge --method linear --members pool:a pool:b pool:c"
    ok(f"{words} --out merged")
    assert "beside the tensors: 1_Pooling/config.json, LICENSE, README.md" in ok(
        f"{words} --format pool --out pool:soup"
    )
    ok("pool export pool:soup out")
    assert tensors("out") == tensors("merged") and beside("out") == beside("merged")
    assert json.loads(beside("out")["merge.json"])["method"] == "linear"
    assert "bit for bit" in ok("merge --verify out") and "bit for bit" in ok("merge --verify pool:soup")
    assert ok("pool export pool:soup out") == "out is there already\n"


def test_members_that_came_from_nowhere_take_the_names_of_the_base(ok, write):
    source = write("source")
    ok("pool add pool a", source)
    pool = Pool("pool")
    pool.add("trained", pool["a"])
    ok("merge --method linear --members pool:a pool:trained --out out")
    assert tensors("out") == tensors(source) and beside("out")["tokenizer.json"] == BESIDE["tokenizer.json"]
    ok("merge --method linear --members pool:trained pool:a --out bare")
    assert {name.replace("/", ".") for name in tensors("bare")[0]} == tensors(source)[0].keys()
    assert "/" in next(iter(tensors("bare")[0])) and set(beside("bare")) == {"README.md", "merge.json", "recipe.yml"}


def test_members_have_the_names_of_a_base_that_is_no_member(ok, write):
    source = write("source")
    ok("pool add pool a", source)
    pool = Pool("pool")
    pool.add("trained", pool["a"])
    save_checkpoint("orbax", dict(pool["a"]))
    ok("merge --method task_arithmetic --base", source, "--members pool:trained pool:a --out out")
    assert tensors("out") == tensors(source) and beside("out")["tokenizer.json"] == BESIDE["tokenizer.json"]
    ok("merge --method task_arithmetic --base orbax --members pool:trained pool:a --out trees")
    assert {name.replace("/", ".") for name in tensors("trees")[0]} == tensors(source)[0].keys()
    assert not any("." in name for name in tensors("trees")[0])


def test_a_released_soup_has_what_its_members_came_from(ok, write):
    _folders(write, ok)
    ok("pool release pool --members a b")
    ok("pool export pool/releases:1 out")
    ok("merge --method uniform --members pool:a pool:b --out merged")
    there, expected = beside("out"), beside("merged")
    for name in ("README.md", "recipe.yml", "merge.json"):  # which name the pool by its whole path
        assert there.pop(name) and expected.pop(name)
    assert tensors("out") == tensors("merged") and there == expected and "tokenizer.json" in there
    assert "bit for bit" in ok("merge --verify out")
    assert ok("pool log pool --remake 1 again") == "wrote again, which is release 1 bit for bit\n"


def test_fisher_diagonals_in_a_pool_have_the_names_of_the_members(ok, write):
    _folders(write, ok)
    pool, fisher = Pool("pool"), Pool("fisher")
    for name in "ab":
        fisher.add(name, {key: leaf for key, leaf in jax.tree.map(np.abs, pool[name]).items() if key != "a"})
    ok("merge --method fisher --members pool:a pool:b --fisher fisher:a fisher:b --out out")
    (a, b), (f, g) = ([open_checkpoint(x).read("model.norm.weight") for x in "ab"] for _ in range(2))
    merged = open_checkpoint("out").read("model.norm.weight").astype(np.float64)
    f, g = np.abs(f).astype(np.float64), np.abs(g).astype(np.float64)
    np.testing.assert_allclose(merged, (f * a + g * b) / (f + g), rtol=1e-4)


def test_licences_and_ids_are_those_of_what_the_members_came_from(small, ok, write, write_lora, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "hub/models--org--name/snapshots").mkdir(parents=True)
    write(tmp_path / "hub/models--org--name/snapshots" / ("0" * 40))
    lora = write_lora("model.layers.0.self_attn.q_proj", 6)
    (lora / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    ok("pool add pool a", f"org/name@{'0' * 40}")
    ok("pool add lora a", f"org/name@{'0' * 40}+{lora}")

    def header(member):
        ok("merge --method linear --members", member, "--out", f"of_{member[:4]}")
        text = pathlib.Path(f"of_{member[:4]}/README.md").read_text()
        return yaml.safe_load(text.split("---")[1]), text

    found, text = header("pool:a")
    assert (found["base_model"], found["license"], found["language"]) == (["org/name"], "mit", "en")
    assert f"hf download org/name --revision {'0' * 40}" in text
    found, text = header("lora:a")
    assert found["base_model"] == ["org/name"] and "license" not in found
    assert "`mit`" in text and "`lora`: `apache-2.0`" in text


# --- Members that came from nowhere, and several ----------------------------------------------------------------------


def test_a_member_without_origin_has_the_names_of_its_pytree(ok):
    pool, weights = Pool("pool"), np.arange(6, dtype=np.float32).reshape(2, 3)
    pool.add("trained", {"dense": {"kernel": weights}, "scale": np.ones(1, ml_dtypes.bfloat16)})
    said = "pool:trained came from no file, so this is not known: what its tensors were called"
    assert f"{said}, config.json; the names are those of the pool\n" in ok("pool export pool:trained out")
    assert f"{said}; the names are those of the pool\n" in ok("pool export pool:trained out.safetensors")
    assert tensors("out") == tensors("out.safetensors")
    assert set(beside("out")) == {"merge.json"} and set(tensors("out")[0]) == {"dense/kernel", "scale"}
    np.testing.assert_array_equal(open_checkpoint("out").read("dense/kernel"), weights)
    ok("merge --method linear --members pool:trained --format pool --out pool:soup")
    assert said.replace("trained", "soup") in ok("pool export pool:soup soup")
    assert set(beside("soup")) == {"README.md", "merge.json", "recipe.yml"}


def test_several_members_are_written_side_by_side_and_gone_on_with(ok, write):
    for seed, name in enumerate("abc", 1):
        ok("pool add pool", name, write(name, seed), "--metadata", f'{{"seed":{seed}}}')
    said = "left out, because seed<3 does not hold: pool:c\nwrote out/a\nwrote out/b\n"
    assert ok("pool export pool out --where seed<3") == said
    shutil.rmtree("out/a")
    assert ok("pool export pool:[ab] pool:c out") == "out/b is there already\nwrote out/a\nwrote out/c\n"
    for name in "abc":
        assert tensors(f"out/{name}") == tensors(name)
    shutil.rmtree("out")
    assert ok("pool export pool out --quiet") == "out/a\nout/b\nout/c\n"


def test_what_cannot_be_exported_is_one_line(cli, ok, write):
    _folders(write, ok)
    pool = Pool("pool")
    bad = pool["a"]
    bad["model"]["norm"]["weight"] = np.full(6, np.nan, np.float32)
    pool.add("bad", bad)
    pool.add("../up", pool["a"])
    pathlib.Path("there").mkdir()
    for words, message in {
        "none:a out": "none:a is not a member of a pool",
        "a out": "a is not a member of a pool: write POOL:NAME",
        "pool:d out": "unknown member of",
        "pool:x* out": "nothing matches 'pool:x*'; pool has: a, b, c, bad, ../up",
        "pool:bad out": "pool:bad holds NaN or infinity in 'model/norm/weight'",
        "pool:a pool:b out.npz": "out.npz would be one file, but 2 members are chosen: give a folder",
        "pool out": "member '../up' cannot be a folder in out: export it alone",
        "pool:a there": "there exists",
        "pool:a pool/out": "would lie inside the pool",
        "pool:a out.pt": "out.pt would be a folder",
        "pool:a out --shard-size 0": "--shard-size must be at least one byte, not 0",
        "pool:a out --format pool": "unknown value of --format 'pool'",
    }.items():
        code, _, err = cli(f"pool export {words}")
        assert code == 2 and err.startswith("soups pool: ") and message in err, (words, err)
        assert err.count("\n") == 1
        assert not any(pathlib.Path(out).exists() for out in ("out", "out.npz", "out.pt", "pool/out"))


def test_a_pool_takes_any_files_that_lie_inside_a_member(tmp_path):
    pool = Pool(tmp_path / "pool")
    for name in ("../x", "", "a//b", "/etc/x", ".", "a\0b"):
        with pytest.raises(ValueError, match="is not the path of a file inside the member"):
            pool.add("m", {"w": np.ones(3)}, files={name: ""})
    assert not (tmp_path / "pool").exists()
    (tmp_path / "file").write_bytes(b"\xff")
    pool.add("m", {"w": np.ones(3)}, files={"_METADATA": "{}", "state/.zarray": b"\0", "w/0": tmp_path / "file"})
    assert {name: path.read_bytes() for name, path in pool.tensors("m").kept().items()} == {
        **{"_METADATA": b"{}", "state/.zarray": b"\0", "w/0": b"\xff"}
    }
    assert pool["m"]["w"].tolist() == [1, 1, 1] and pool.verify() == {"m": []}
    assert set(merging.open_model(f"{tmp_path}/pool:m").leaves) == {"w"}  # they are no origin


def test_a_file_that_is_gone_when_it_is_copied_leaves_no_member(tmp_path):
    pool = Pool(tmp_path / "pool")
    with pytest.raises(OSError, match=r"cannot add member 'm'.*"):
        pool.add("m", {"w": np.ones(3)}, files={"x": tmp_path / "gone"})
    assert len(Pool(tmp_path / "pool")) == 0 and not list((tmp_path / "pool" / "members").iterdir())
