"""Fine-tune a pool on a miniature of ImageNet and cook from it; interrupt both; run both in two processes."""

import functools
import json
import os
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from imagenet_small import (
    ARCH,
    CLASSES,
    MAIN_ROWS,
    QUICK,
    changed,
    finetune_config,
    make_folder,
    soups_config,
)

from soups import Pool, tree
from soups.data.imagenet import SETS, evaluation_sets
from soups.evaluate import Evaluator
from soups.models.architectures import architecture
from soups.pool import digest, prefetch
from soups.report import load_results, page
from soups.studies import imagenet_finetune, imagenet_soups, streamed
from soups.studies.given import open_members
from soups.studies.kitchen import Kitchen, slug
from soups.train import step as train_step
from soups.train import sweeps

HERE = pathlib.Path(__file__).parent


@pytest.fixture(scope="module", autouse=True)
def small_machine():
    """Let the runs see four devices, as two processes of two have them, compile quickly, and draw nothing."""
    few = jax.devices()[:4]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: few)
        for name in ("device_count", "local_device_count"):
            patch.setattr(jax, name, lambda: 4)
        patch.setattr(train_step, "cpu_options", lambda statistics: QUICK)
        patch.setattr(page, "draw_all", lambda results: [])
        yield


class Cut:
    """Hand out batches until there are no more, as when the machine is taken away."""

    def __init__(self, batches, limit):
        self._batches, self._limit = batches, limit
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __iter__(self):
        return self

    def __next__(self):
        if not self._limit:
            raise KeyboardInterrupt
        self._limit -= 1
        return next(self._batches)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with the data and a CLIP in OpenAI's names whose towers are random."""
    return make_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.fixture(scope="module")
def finetuned(folder):
    """Return the pools of a fine-tuning that was stopped twice, their digests then, and the batches after each stop.

    It was stopped in the middle of its group, and while the members of it were added.
    """
    drawn, counted, config = [], ([], []), finetune_config(folder)
    real, add = streamed.loader, sweeps._added

    def cut(*args, **options):
        drawn.append(args)
        return Cut(iter(real(*args, **options)), 3 if len(drawn) == 2 else -1)

    def counting(into):
        return lambda *args, **options: _counted(iter(real(*args, **options)), into)

    def not_the_last(pool, name, *rest):
        if pool.path.name == "pool" and name == "member_02":
            raise KeyboardInterrupt
        return add(pool, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streamed, "loader", cut)
        with pytest.raises(KeyboardInterrupt):
            imagenet_finetune.run(config, folder / "finetune")
        patch.setattr(streamed, "loader", counting(counted[0]))
        patch.setattr(sweeps, "_added", not_the_last)
        with pytest.raises(KeyboardInterrupt):
            imagenet_finetune.run(config, folder / "finetune")
        before = Pool(folder / "finetune" / "pool")
        digests = {name: before.digest(name) for name in before}
        patch.setattr(streamed, "loader", counting(counted[1]))
        patch.setattr(sweeps, "_added", add)
        paths = imagenet_finetune.run(config, folder / "finetune")
    assert {pathlib.Path(path).name for path in paths} >= {"pool", "results.json", "report.html"}
    pools = [Pool(folder / "finetune" / name) for name in ("pool", "pool_ema_0.0", "pool_ema_0.9")]
    return *pools, digests, [len(batches) for batches in counted]


def _counted(batches, counted):
    class Counting(Cut):
        def __next__(self):
            counted.append(1)
            return super().__next__()

    return Counting(batches, -1)


@pytest.fixture(scope="module")
def cooked(folder, finetuned):
    """Return the results of a run that was interrupted before its ensembles, and the forward passes of the same command

    after it was finished."""
    config = soups_config(folder, finetuned[0].path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kitchen, "ensemble_rows", _interrupted)
        with pytest.raises(KeyboardInterrupt):
            imagenet_soups.run(config, folder / "soups")
    with counted_passes() as after_interruption:
        paths = imagenet_soups.run(config, folder / "soups")
    return json.loads((folder / "soups" / "results.json").read_text()), after_interruption, paths


def _interrupted(*_):
    raise KeyboardInterrupt


class counted_passes:
    """List the numbers of examples that evaluators see."""

    def __enter__(self):
        self._patch, seen, real = pytest.MonkeyPatch(), [], Evaluator.logits

        def logits(evaluator, params):
            seen.append(len(evaluator.labels))
            return real(evaluator, params)

        self._patch.setattr(Evaluator, "logits", logits)
        return seen

    def __exit__(self, *_):
        self._patch.undo()


@pytest.fixture(scope="module")
def datasets(folder):
    return evaluation_sets(folder / "data", folder / "decoded", image_size=32)


def accuracy_of(row, split):
    return row["metrics"][split]["accuracy"]


def row_named(results, name):
    (row,) = (row for row in results["rows"] if row["group"] == "main" and row["name"] == name)
    return row


@functools.cache
def network():
    return jax.jit(architecture(ARCH).apply_fn(CLASSES))


def accuracy_by_hand(params, dataset):
    """Run the network on all images at once, take the largest output of each group, and count."""
    images = np.zeros((200, 32, 32, 3), np.float32)  # the largest set has so many
    images[: len(dataset)] = dataset.images / np.float32(255)
    logits = np.asarray(network()(params, images))[: len(dataset)]
    groups = dataset.class_groups or [(c,) for c in range(CLASSES)]
    right = 0
    for row, label in zip(logits, dataset.labels, strict=True):
        scores = [max(row[output] for output in group) for group in groups]
        right += scores.index(max(scores)) == label
    return right / len(dataset)


# --- Fine-tuning ------------------------------------------------------------------------------------------------------


def test_the_pool_has_the_probe_and_the_members_with_their_settings(finetuned):
    pool, *_ = finetuned
    assert list(pool) == ["member_00", "member_01", "member_02"]
    records = [pool.record(name) for name in pool]
    assert records[0]["metadata"]["config"] == {"info": "linear probe on the start weights"}
    for record in records[1:]:
        assert {"learning_rate", "weight_decay", "mixup", "augmentation"} <= set(record["metadata"]["config"])
        assert record["metadata"]["arch"] == ARCH
        assert record["base"] == pool.digest("member_00")
    assert records[0]["metrics"]["held_out"] > 3 / CLASSES  # a probe of random features is far better than chance
    probe, member = tree.flatten(pool["member_00"]), tree.flatten(pool["member_01"])
    assert all(not np.array_equal(probe[name], member[name]) for name in probe)


def test_an_interrupted_fine_tuning_goes_on_at_its_last_checkpoint(folder, finetuned):
    pool, *_, digests, counted = finetuned
    assert set(digests) == {"member_00", "member_01"}
    assert {name: pool.digest(name) for name in digests} == digests
    # 440 images in batches of 128 are 4 steps of each of two members, and the second was kept; then all of them
    assert counted == [2 * (4 - 2), 0]
    for name in ("member_01", "member_02"):
        losses = (folder / "finetune" / "losses" / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in losses] == list(range(4))
    assert not (folder / "finetune" / "pool.training").exists()


def test_held_out_accuracies_are_those_of_the_network(finetuned, datasets):
    pool, *_ = finetuned
    for name in pool:
        expected = accuracy_by_hand(pool[name], datasets["held_out"])
        assert pool.metrics(name)["held_out"] == pytest.approx(expected, abs=1e-9)


def test_the_next_command_is_printed_with_its_pool(folder, finetuned, capsys):
    imagenet_finetune.run(finetune_config(folder), folder / "finetune")
    printed = capsys.readouterr().out
    workdir = os.path.relpath(folder / "finetune")
    for name, own in (("pool", "soups"), ("pool_ema_0.9", "soups_ema_0.9")):
        assert f"--workdir {workdir}_{own} " in printed
        assert f"--config.pool={workdir}/{name} --config.wise_ft.base=member_00" in printed
    assert "best member, ema_0.9" in printed and "linear probe" in printed


def test_what_was_fine_tuned_is_in_the_results_and_the_report(folder, finetuned):
    results, pools = load_results(folder / "finetune"), finetuned[:3]
    rows = {row["name"]: row["metrics"]["held_out"]["accuracy"] for row in results["rows"]}
    scores = [{name: pool.metrics(name)["held_out"] for name in pool} for pool in pools]
    assert rows["linear probe"] == scores[0]["member_00"]
    for kind, known in zip(("", ", ema_0.0", ", ema_0.9"), scores, strict=True):
        assert {name: rows[name + kind] for name in known} == known
        assert rows[f"best member{kind}"] == max(known.values())
        assert rows[f"mean member{kind}"] == pytest.approx(np.mean(list(known.values())))
    records = {name: finetuned[0].record(name) for name in finetuned[0]}
    found = {member["name"]: member for member in results["members"][str(results["seeds"][0])]}
    assert {name: one["digest"] for name, one in found.items()} == {n: one["digest"] for n, one in records.items()}
    assert all(found[name]["config"] == one["metadata"]["config"] for name, one in records.items())
    page = (folder / "finetune" / "report.html").read_text()
    assert "best member, ema_0.9" in page and records["member_01"]["metadata"]["config"]["augmentation"] in page


def test_every_average_has_a_pool_of_its_own(folder, finetuned, datasets):
    pool, at_the_end, average, *_ = finetuned
    first = tree.flatten(pool["member_00"])
    for one, kind in ((at_the_end, "ema_0.0"), (average, "ema_0.9")):
        assert list(one) == list(pool) and one.digest("member_00") == pool.digest("member_00")
        for name in list(pool)[1:]:
            record, expected = one.record(name), pool.record(name)
            assert record["metadata"] == expected["metadata"] | {"average": kind}
            assert record["base"] == expected["base"]
            by_hand = accuracy_by_hand(one[name], datasets["held_out"])
            assert record["metrics"]["held_out"] == pytest.approx(by_hand, abs=1e-9)
        assert list(open_members(soups_config(folder, one.path), CLASSES)) == list(pool)
    for name in list(pool)[1:]:
        member, last, mean = (tree.flatten(one[name]) for one in (pool, at_the_end, average))
        for leaf in first:
            np.testing.assert_allclose(last[leaf], member[leaf], rtol=0, atol=1e-6)  # decay 0: the weights themselves
        # after 4 steps 0.9 has seen a third of the way
        far, near = (sum(np.abs(one[leaf] - first[leaf]).sum() for leaf in first) for one in (member, mean))
        assert 0.03 * far < near < 0.4 * far


def test_sharpness_aware_members_have_the_radius_of_the_config(folder, finetuned, tmp_path, monkeypatch):
    seen = {}

    def caught(lanes, params, members, data, **_):
        seen.update(members["member_02"], sam=lanes.training.sam, decays=lanes.training.ema_decays)
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeps, "run", caught)
    start = finetuned[0].path / finetuned[0].record("member_00")["path"]  # with a head, so that there is no probe
    changes = {"start": str(start), "probe.strengths": (), "finetune.sam_radius": 0.03, "finetune.ema_decays": ()}
    with pytest.raises(KeyboardInterrupt):
        imagenet_finetune.run(changed(finetune_config(folder), changes), tmp_path / "run")
    assert (seen["sam"], seen["sam_radius"], seen["decays"]) == (True, 0.03, ())


# --- Cooking ----------------------------------------------------------------------------------------------------------


def test_every_row_is_there(cooked):
    results, _, paths = cooked
    main = [row["name"] for row in results["rows"] if row["group"] == "main"]
    assert main == MAIN_ROWS
    assert [row["name"] for row in results["rows"] if row["group"] == "member"] == [f"member_0{i}" for i in range(3)]
    assert len([row for row in results["rows"] if row["group"] == "curve"]) == 3
    assert list(results["splits"]) == [*SETS, "shift_mean"]
    assert "The held-out images are chosen by the published index file." in results["notes"]
    assert any("imagenet has 200 images, the published set has 50,000" in note for note in results["notes"])
    assert all(os.path.exists(path) for path in paths)


def test_rows_are_what_the_network_gives_on_every_set(cooked, finetuned, datasets):
    results, pool = cooked[0], finetuned[0]
    leaves = [tree.flatten(pool[name]) for name in pool]
    mean = {name: np.mean([one[name].astype(np.float64) for one in leaves], axis=0) for name in leaves[0]}
    uniform = tree.map_with_names(lambda name, leaf: mean[name].astype(np.float32), pool["member_00"])
    found = {name: accuracy_by_hand(uniform, dataset) for name, dataset in datasets.items()}
    row = row_named(results, "uniform soup")
    # one image may lie on the border between two classes
    for name, value in found.items():
        assert accuracy_of(row, name) == pytest.approx(value, abs=1.01 / len(datasets[name]))
    shifts = [accuracy_of(row, name) for name in SETS[2:]]
    assert accuracy_of(row, "shift_mean") == pytest.approx(sum(shifts) / 5)
    assert row["num_ingredients"] == 3 and row["cost"]["inference"] == 1


def test_selected_rows_keep_their_rules(cooked, finetuned):
    results = cooked[0]
    held_out = {name: finetuned[0].metrics(name)["held_out"] for name in finetuned[0]}
    best = row_named(results, "best member")
    assert accuracy_of(best, "held_out") == max(held_out.values())
    greedy = row_named(results, "greedy soup")
    assert accuracy_of(greedy, "held_out") >= accuracy_of(best, "held_out")
    assert next(iter(greedy["ingredients"])) == next(iter(best["ingredients"]))
    history = results["histories"]["0"]["greedy soup"]
    assert [step["member"] for step in history] == sorted(held_out, key=held_out.get)[::-1]
    mean = accuracy_of(row_named(results, "mean member"), "held_out")
    assert mean == pytest.approx(np.mean(list(held_out.values())))
    assert row_named(results, "ensemble")["cost"]["inference"] == 3
    chosen = accuracy_of(row_named(results, "WiSE-FT, α by held-out"), "held_out")
    assert chosen == max(accuracy_of(row, "held_out") for row in results["rows"] if row["group"] == "curve")


def test_soups_are_kept_with_what_they_were_made_from(folder, cooked, finetuned):
    record = Pool(folder / "soups" / "soups").record("greedy_soup")["metadata"]
    assert record["arch"] == ARCH
    assert record["digests"] == {name: finetuned[0].digest(name) for name in record["ingredients"]}


def test_finished_evaluations_are_not_repeated(folder, cooked, finetuned):
    _, after_interruption, _ = cooked
    sizes = json.loads((folder / "soups" / "results.json").read_text())["splits"]
    # left were the ensembles, which are arithmetic, and three places on the path
    assert sum(after_interruption) <= 3 * sum(found.get("examples", 0) for found in sizes.values())
    before = (folder / "soups" / "results.json").read_bytes()
    with counted_passes() as seen:
        imagenet_soups.run(soups_config(folder, finetuned[0].path), folder / "soups")
    assert seen == []
    assert (folder / "soups" / "results.json").read_bytes() == before


def test_other_places_and_recipes_repeat_what_depends_on_them(folder, cooked, finetuned, tmp_path):
    again = tmp_path / "soups"
    shutil.copytree(folder / "soups", again)
    (tmp_path / "decoded").symlink_to(folder / "decoded")
    config = soups_config(folder, finetuned[0].path) | {"cook": ("uniform", "greedy", "wise_ft")}
    config["wise_ft"]["alphas"] = (0.5, 1.0)
    stages = {path: path.stat().st_mtime_ns for path in (again / "stages").iterdir()}
    with counted_passes() as seen:
        imagenet_soups.run(config, again)
    assert seen == []  # both places were measured before
    assert [path.stem for path, made in stages.items() if path.stat().st_mtime_ns != made] == ["wise_ft"]
    results = json.loads((again / "results.json").read_text())
    main = [row["name"] for row in results["rows"] if row["group"] == "main"]
    assert main == [name for name in MAIN_ROWS if not name.startswith("learned") and "ensemble" not in name]
    assert row_named(results, "WiSE-FT, α = 0.5") == row_named(cooked[0], "WiSE-FT, α = 0.5")


def test_files_in_place_give_the_numbers_of_the_pool(folder, cooked, finetuned, tmp_path):
    from miniature import tensors, torch_zip

    text = tensors.text_tensors(514, 64, 2, 64, np.random.default_rng(0))
    names = {"member_00": "model_0", "member_01": "model_2", "member_02": "model_10"}
    for name, file in names.items():
        weights = tensors.classifier_tensors(finetuned[0][name], text)
        torch_zip.write_state_dict(tmp_path / f"{file}.pt", weights)
    config = soups_config(folder, "") | {"models": str(tmp_path / "model_*.pt"), "cook": ("uniform",)}
    config |= {"sets": ("held_out", "imagenet"), "cache_dir": str(folder / "decoded")}
    imagenet_soups.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = {row["name"]: row["metrics"] for row in results["rows"] if row["group"] == "member"}
    assert list(found) == list(names.values())
    for row in cooked[0]["rows"]:
        if row["group"] == "member":
            assert found[names[row["name"]]] == {name: row["metrics"][name] for name in config["sets"]}
    uniform = accuracy_of(row_named(cooked[0], "uniform soup"), "imagenet")
    assert accuracy_of(row_named(results, "uniform soup"), "imagenet") == pytest.approx(uniform, abs=1.01 / 200)
    os.utime(tmp_path / "model_2.pt")  # read once more, and the same
    with counted_passes() as seen:
        imagenet_soups.run(config, tmp_path / "run")
    assert seen == []
    weights = tensors.classifier_tensors(finetuned[0]["member_00"], text)
    torch_zip.write_state_dict(tmp_path / "model_2.pt", weights)  # another member of that name, measured already
    with counted_passes() as seen:
        imagenet_soups.run(config, tmp_path / "run")
    again = json.loads((tmp_path / "run" / "results.json").read_text())
    rows = {row["name"]: row["metrics"] for row in again["rows"] if row["group"] == "member"}
    assert rows["model_2"] == rows["model_0"] == found["model_0"]
    assert len(seen) == 2  # the uniform soup on both sets


def test_members_are_kept_as_memory_allows_and_the_report_says_so(folder, finetuned, tmp_path, monkeypatch):
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(finetuned[0]["member_00"]))
    monkeypatch.setattr(prefetch, "_free_bytes", lambda: 2 * 3 * size - 1)
    config = soups_config(folder, finetuned[0].path) | {
        "cook": ("uniform", "learned"),
        "sets": ("held_out", "imagenet"),
    }
    imagenet_soups.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["facts"]["the data"]["members_dtype"] == "bfloat16"
    assert "rounded to bfloat16" in (tmp_path / "run" / "report.html").read_text()
    rounded = {
        name: jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(np.float32), member)
        for name, member in finetuned[0].items()
    }
    assert {member["digest"] for member in results["members"]["0"]} == set(map(digest, rounded.values()))
    kept = Pool(tmp_path / "run" / "soups")
    expected = tree.mean(list(rounded.values()))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), kept["uniform_soup"], expected)
    expected = tree.weighted_sum(list(rounded.values()), row_named(results, "learned soup")["ingredients"].values())
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), kept["learned_soup"], expected)
    monkeypatch.setattr(prefetch, "_free_bytes", lambda: 10**12)  # the run goes on as it was begun
    imagenet_soups.run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "results.json").read_text()) == results


def test_a_single_device_mixes_there_and_gives_the_soups_of_many(folder, cooked, finetuned, tmp_path, monkeypatch):
    one, mixed_on = jax.devices()[:1], []
    monkeypatch.setattr(jax, "devices", lambda: one)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    real = Evaluator.many_logits

    def logits(evaluator, candidates):
        mixed_on.extend(leaf.devices() for candidate in candidates for leaf in jax.tree.leaves(candidate))
        return real(evaluator, candidates)

    monkeypatch.setattr(Evaluator, "many_logits", logits)
    config = soups_config(folder, finetuned[0].path) | {"cook": ("greedy",), "sets": ("held_out", "imagenet")}
    imagenet_soups.run(config | {"cache_dir": str(folder / "decoded")}, tmp_path / "run")
    assert set(map(tuple, mixed_on)) == {tuple(one)}
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    here, there = (Pool(path / "soups") for path in (tmp_path / "run", folder / "soups"))
    for name in ("greedy soup", "greedy soup, random order 1"):
        assert row_named(results, name)["ingredients"] == row_named(cooked[0], name)["ingredients"]
        kept = here[slug(name)], there[slug(name)]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), *kept)


# --- Two processes ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def together(folder, finetuned, run_both):
    """Return what each of two processes printed that did all of it once more, in folder / "both"."""
    script = HERE / "two_processes_imagenet.py"
    return run_both(lambda index, port: [sys.executable, script, str(index), port, folder], folder, seconds=300)


def test_two_processes_make_the_pools_of_one(folder, finetuned, together):
    for pool in finetuned[:3]:
        there = Pool(folder / "both" / "finetune" / pool.path.name)
        # to the bit: over two shards of a batch a sum has one order alone
        assert {name: there.digest(name) for name in there} == {name: pool.digest(name) for name in pool}
        own, others = ([one.record(name)["metadata"] for name in list(one)[1:]] for one in (pool, there))
        assert own == others
        assert [there.metrics(name) for name in there] == [pool.metrics(name) for name in pool]
        assert all(problems == [] for problems in there.verify().values())


def test_two_processes_fit_the_probe_of_one(folder, finetuned, together):
    there = Pool(folder / "both" / "probe" / "pool")
    found, expected = tree.flatten(there["member_00"]), tree.flatten(finetuned[0]["member_00"])
    heads = [name for name in expected if name.startswith("head/")]
    assert len(heads) == 2
    for name, leaf in expected.items():
        # each step of L-BFGS makes more of the rounding of sums over four devices
        allowed = 1e-3 * np.linalg.norm(leaf) if name in heads else 0
        assert np.linalg.norm(found[name] - leaf) <= allowed
    held_out = [pool.metrics("member_00")["held_out"] for pool in (there, finetuned[0])]
    assert held_out[0] == pytest.approx(held_out[1], abs=1.01 / 160)  # one image may lie on the border between classes


def test_two_processes_find_the_rows_of_one(folder, cooked, together):
    results = json.loads((folder / "both" / "soups" / "results.json").read_text())
    assert results["device"].endswith("x4")
    for part in ("rows", "histories", "splits", "notes"):
        assert results[part] == cooked[0][part]
    (first, *members), (expected, *others) = results["members"]["0"], cooked[0]["members"]["0"]
    assert members == others
    assert first | {"config": None} == expected | {"config": None}  # which they were given, not told to probe


def test_the_first_process_alone_decodes_and_prints(together):
    lines = [printed.splitlines() for printed in together]
    for what in (
        "decode held_out: 160/160",
        "decode imagenet_a: ",
        "member_02: loss ",
        "measuring: 3/3",
        "soups · ",
    ):
        assert sum(what in line for line in lines[0]) >= 1, what
        assert not any(what in line for line in lines[1]), what
    assert sum("decode held_out: 160/160" in line for line in lines[0]) == 1


def test_what_is_missing_on_one_host_ends_the_run_on_all(together):
    refused = [next(line for line in printed.splitlines() if line.startswith("refused: ")) for printed in together]
    assert refused[0].startswith("refused: on process 1: ") and "/nowhere" in refused[0]
    assert "/nowhere" in refused[1]
