"""Fine-tune a pool on a miniature of ImageNet and cook from it; interrupt both; configure them wrongly."""

import copy
import importlib.util
import json
import os
import pathlib
import sys

import numpy as np
import pytest

from soups import Pool, tree
from soups.data.imagenet import SETS, evaluation_sets
from soups.evaluate import Evaluator
from soups.experiments import imagenet_finetune, imagenet_soups
from soups.experiments.imagenet_finetune import members as finetune_members
from soups.experiments.imagenet_finetune.search import augmentation, draw_members
from soups.experiments.imagenet_soups import cooking
from soups.experiments.imagenet_soups.members import natural
from soups.models.architectures import architecture

ROOT = pathlib.Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from imagenet_miniature import make_data  # noqa: E402
from miniature import tensors, torch_zip  # noqa: E402

ARCH, CLASSES = "clip-vit-mini", 20


def default_config(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "configs" / "imagenet" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config().to_dict()


def finetune_config(folder):
    config = default_config("clip_vit_b32_finetune")
    config |= {"data_dir": str(folder / "data"), "start": str(folder / "clip.pt"), "arch": ARCH}
    config["probe"] = {"strengths": (1.0, 100.0), "max_iterations": 20}
    config["finetune"] |= {"batch_size": 64, "save_every": 3, "num_threads": 0, "num_workers": 0, "dtype": "float32"}
    config["sweep"] |= {"members": 2, "epochs": (1, 1), "learning_rate": (1e-4, 1e-3)}
    config["evaluate"]["batch_size"] = 200
    return config


def soups_config(folder):
    config = default_config("clip_vit_b32_soups")
    config |= {"data_dir": str(folder / "data"), "arch": ARCH, "pool": str(folder / "finetune" / "pool")}
    config["evaluate"]["batch_size"] = 200
    config["greedy"]["random_orders"] = 1
    config["learned"] |= {"epochs": 1, "batch_size": 80}
    config["wise_ft"]["alphas"] = (0.0, 0.5, 1.0)
    return config


class Cut:
    """Give batches until there are no more, as when the machine is taken away."""

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
    """Give a folder with the data and a CLIP in OpenAI's names whose towers are random."""
    folder = tmp_path_factory.mktemp("imagenet")
    make_data(folder / "made")
    (folder / "made" / "data").rename(folder / "data")
    rng, network = np.random.default_rng(0), architecture(ARCH)
    weights = tensors.random_weights(network.abstract(None), rng)
    text = tensors.text_tensors(514, network.text.width, network.text.depth, network.feature_dim, rng)
    torch_zip.write_state_dict(folder / "clip.pt", tensors.clip_tensors(weights, text))
    return folder


@pytest.fixture(scope="module")
def finetuned(folder):
    """Give the pool of a fine-tuning that was interrupted in its second member, and the batches after that."""
    drawn, real = [], finetune_members._batches

    def cut(setting, seed, policy):
        batches = iter(real(setting, seed, policy))
        drawn.append(policy)
        return Cut(batches, 5) if len(drawn) == 2 else batches

    config = finetune_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune_members, "_batches", cut)
        with pytest.raises(KeyboardInterrupt):
            imagenet_finetune.run(config, folder / "finetune")
        before = Pool(folder / "finetune" / "pool")
        digests = {name: before.digest(name) for name in before}
        counted = []
        patch.setattr(finetune_members, "_batches", lambda *args: _counted(iter(real(*args)), counted))
        paths = imagenet_finetune.run(config, folder / "finetune")
    assert paths == [str(folder / "finetune" / "pool")]
    return Pool(paths[0]), digests, counted


def _counted(batches, counted):
    class Counting(Cut):
        def __next__(self):
            counted.append(1)
            return super().__next__()

    return Counting(batches, -1)


@pytest.fixture(scope="module")
def cooked(folder, finetuned):
    """Give the results of a run that was interrupted before its ensembles, and the forward passes of the same command

    after it was finished."""
    config = soups_config(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cooking, "ensemble_rows", _interrupted)
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


def row_named(results, name):
    (row,) = (row for row in results["rows"] if row["group"] == "main" and row["name"] == name)
    return row


def accuracy_by_hand(params, dataset):
    """Run the network on all images at once, take the largest output of each group, and count."""
    logits = np.asarray(architecture(ARCH).apply_fn(CLASSES)(params, dataset.images.astype(np.float32) / 255.0))
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
    assert records[0]["metadata"]["hparams"] == {"info": "linear probe on the start weights"}
    for record in records[1:]:
        assert {"learning_rate", "weight_decay", "mixup", "augmentation"} <= set(record["metadata"]["hparams"])
        assert record["metadata"]["arch"] == ARCH
        assert record["base"] == pool.digest("member_00")
    assert records[0]["metrics"]["held_out"] > 3 / CLASSES  # a probe of random features is far better than chance
    probe, member = tree.flatten(pool["member_00"]), tree.flatten(pool["member_01"])
    assert all(not np.array_equal(probe[name], member[name]) for name in probe)


def test_an_interrupted_fine_tuning_goes_on_at_its_last_checkpoint(folder, finetuned):
    pool, digests, counted = finetuned
    assert set(digests) == {"member_00", "member_01"}
    assert {name: pool.digest(name) for name in digests} == digests
    assert len(counted) == 7 - 3  # 440 images in batches of 64 are 7 steps, and the third was kept
    losses = (folder / "finetune" / "losses" / "member_02.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in losses] == list(range(7))
    assert not list((folder / "finetune" / "training").iterdir())


def test_held_out_accuracies_are_those_of_the_network(finetuned, datasets):
    pool, *_ = finetuned
    for name in pool:
        expected = accuracy_by_hand(pool[name], datasets["held_out"])
        assert pool.metrics(name)["held_out"] == pytest.approx(expected, abs=1e-9)


def test_the_next_command_is_printed_with_its_pool(folder, finetuned, capsys):
    imagenet_finetune.run(finetune_config(folder), folder / "finetune")
    printed = capsys.readouterr().out
    assert f"--config.pool={os.path.relpath(folder / 'finetune')}/pool --config.wise_ft.base=member_00" in printed
    assert "member_02" in printed and "minimal" in printed + printed.replace("rand-m", "minimal")


def test_the_search_draws_what_the_published_search_could():
    config = default_config("clip_vit_b32_finetune")["sweep"]
    drawn = draw_members(config | {"members": 300}, 0)
    assert drawn[:71] == draw_members(config, 0)
    rates = np.array([one["learning_rate"] for one in drawn])
    assert 1e-6 <= rates.min() < 2e-6 and 5e-5 < rates.max() <= 1e-4
    for name, largest in (("label_smoothing", 0.25), ("mixup", 0.9)):
        values = np.array([one[name] for one in drawn])
        assert 0.4 < np.mean(values == 0) < 0.6 and largest / 2 < values.max() < largest
    minimal = [one["augmentation"] == "minimal" for one in drawn]
    assert 0.25 < np.mean(minimal) < 0.42
    policies = {one["augmentation"] for one in drawn} - {"minimal"}
    assert {policy.split("-n")[1] for policy in policies} == {"0", "1", "2"}
    assert {int(policy.split("-")[1][1:]) for policy in policies} == set(range(21))
    assert {one["epochs"] for one in drawn} == set(range(4, 17))


def test_minimal_augmentation_keeps_nearly_all_of_the_image(rng):
    image = np.tile(np.arange(100, dtype=np.uint8)[:, None, None], (1, 100, 3))
    crops = [augmentation("minimal", 50)(image, rng)[..., 0] for _ in range(20)]
    assert all(int(crop.max()) - int(crop.min()) >= 85 for crop in crops)
    spans = [
        int(found.max()) - int(found.min()) for found in (augmentation("rand-m0-n0", 50)(image, rng) for _ in range(20))
    ]
    assert min(spans) < 70


# --- Cooking ----------------------------------------------------------------------------------------------------------


def test_every_row_is_there(cooked):
    results, _, paths = cooked
    main = [row["name"] for row in results["rows"] if row["group"] == "main"]
    assert main == [
        "best member",
        "best member on the shifts",
        "mean member",
        "uniform soup",
        "greedy soup",
        "greedy soup, random order 1",
        "learned soup",
        "learned soup, per leaf",
        "ensemble",
        "greedy ensemble",
        "WiSE-FT, α by held-out",
        "WiSE-FT, α = 0.5",
    ]
    assert [row["name"] for row in results["rows"] if row["group"] == "member"] == [f"member_0{i}" for i in range(3)]
    assert len([row for row in results["rows"] if row["group"] == "curve"]) == 3
    assert list(results["sets"]) == list(SETS) and results["held_out"] == "published"
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
    assert row["accuracy"] == {
        name: pytest.approx(value, abs=1.01 / len(datasets[name])) for name, value in found.items()
    }
    shifts = [row["accuracy"][name] for name in SETS[2:]]
    assert row["shift_mean"] == pytest.approx(sum(shifts) / 5)
    assert row["num_ingredients"] == 3 and row["passes"] == 1


def test_selected_rows_keep_their_rules(cooked, finetuned):
    results = cooked[0]
    held_out = {name: finetuned[0].metrics(name)["held_out"] for name in finetuned[0]}
    best = row_named(results, "best member")
    assert best["accuracy"]["held_out"] == max(held_out.values())
    greedy = row_named(results, "greedy soup")
    assert greedy["accuracy"]["held_out"] >= best["accuracy"]["held_out"]
    assert next(iter(greedy["ingredients"])) == next(iter(best["ingredients"]))
    assert [step["member"] for step in results["histories"]["greedy soup"]] == sorted(held_out, key=held_out.get)[::-1]
    mean = row_named(results, "mean member")["accuracy"]["held_out"]
    assert mean == pytest.approx(np.mean(list(held_out.values())))
    assert row_named(results, "ensemble")["passes"] == 3
    chosen = row_named(results, "WiSE-FT, α by held-out")["accuracy"]["held_out"]
    assert chosen == max(row["accuracy"]["held_out"] for row in results["rows"] if row["group"] == "curve")


def test_soups_are_kept_with_what_they_were_made_from(folder, cooked, finetuned):
    record = Pool(folder / "soups" / "soups").record("greedy_soup")["metadata"]
    assert record["arch"] == ARCH
    assert record["digests"] == {name: finetuned[0].digest(name) for name in record["ingredients"]}


def test_finished_evaluations_are_not_repeated(folder, cooked):
    _, after_interruption, _ = cooked
    sizes = json.loads((folder / "soups" / "results.json").read_text())["sets"]
    # left were the ensembles, which are arithmetic, and three places on the path
    assert sum(after_interruption) <= 3 * sum(found["examples"] for found in sizes.values())
    before = (folder / "soups" / "results.json").read_bytes()
    with counted_passes() as seen:
        imagenet_soups.run(soups_config(folder), folder / "soups")
    assert seen == []
    assert (folder / "soups" / "results.json").read_bytes() == before


def test_files_in_place_give_the_numbers_of_the_pool(folder, cooked, finetuned, tmp_path):
    text = tensors.text_tensors(514, 64, 2, 64, np.random.default_rng(0))
    names = {"member_00": "model_0", "member_01": "model_2", "member_02": "model_10"}
    for name, file in names.items():
        weights = tensors.classifier_tensors(finetuned[0][name], text)
        torch_zip.write_state_dict(tmp_path / f"{file}.pt", weights)
    config = soups_config(folder) | {"pool": "", "models": str(tmp_path / "model_*.pt"), "cook": ("uniform",)}
    config |= {"sets": ("held_out", "imagenet"), "cache_dir": str(folder / "decoded")}
    imagenet_soups.run(config, tmp_path / "run")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    found = {row["name"]: row["accuracy"] for row in results["rows"] if row["group"] == "member"}
    assert list(found) == list(names.values())
    for row in cooked[0]["rows"]:
        if row["group"] == "member":
            assert found[names[row["name"]]] == {name: row["accuracy"][name] for name in config["sets"]}
    uniform = row_named(cooked[0], "uniform soup")["accuracy"]["imagenet"]
    assert row_named(results, "uniform soup")["accuracy"]["imagenet"] == pytest.approx(uniform, abs=1.01 / 200)
    os.utime(tmp_path / "model_2.pt")
    with pytest.raises(ValueError, match=r"members have changed since they were measured.*: model_2$"):
        imagenet_soups.run(config, tmp_path / "run")


def test_members_are_in_their_natural_order():
    assert natural(["model_10", "model_2", "linear", "model_1"]) == ["linear", "model_1", "model_2", "model_10"]
    assert natural(["2b", "10a", "a"]) == ["a", "2b", "10a"]


def changed(config, changes):
    config = copy.deepcopy(config)
    for name, value in changes.items():
        section, _, field = name.rpartition(".")
        (config[section] if section else config)[field] = value
    return config


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"sets": ("held_out", "imagenet", "imagenet_v3")}, ValueError, "did you mean 'imagenet_v2'"),
        ({"sets": ("imagenet",)}, ValueError, "sets must have held_out"),
        ({"cook": ("gredy",)}, ValueError, "did you mean 'greedy'"),
        ({"evaluate.precision": "float16"}, ValueError, "unknown precision 'float16'"),
        ({"data_dir": None}, ValueError, "data_dir is missing"),
        ({"data_dir": "/nowhere"}, FileNotFoundError, "/nowhere"),
        ({"models": "*.pt"}, ValueError, "give either pool.* or models"),
        ({"pool": "/nowhere"}, FileNotFoundError, "no pool at /nowhere"),
        ({"pool": "", "models": "/nowhere/*.pt"}, FileNotFoundError, "fits 0 files"),
        ({"wise_ft.base": "member_0"}, ValueError, "did you mean 'member_0"),
        ({"wise_ft.member": "member_00"}, ValueError, "leads from member_00 to itself"),
        ({"arch": "clip-vit-b32"}, ValueError, "clip-vit-b32 with 20 classes"),
        ({"wise_ft.alphas": ()}, ValueError, "alphas"),
        ({"extra": 1}, ValueError, "extra is unknown"),
    ],
)
def test_wrong_configs_are_refused_before_any_evaluation(folder, finetuned, tmp_path, changes, error, message):
    with counted_passes() as seen, pytest.raises(error, match=message):
        imagenet_soups.run(changed(soups_config(folder), changes), tmp_path / "run")
    assert seen == []


def test_a_pool_with_too_few_finite_members_is_refused(folder, finetuned, tmp_path):
    pool = Pool(tmp_path / "pool")
    pool.add("good", finetuned[0]["member_00"])
    pool.add("bad", tree.map_with_names(lambda _, leaf: np.full_like(leaf, np.nan), finetuned[0]["member_00"]))
    with pytest.raises(ValueError, match="has 1 finite members, but soups need two"):
        imagenet_soups.run(soups_config(folder) | {"pool": str(pool.path)}, tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"start": None}, ValueError, "start must be given"),
        ({"data_dir": "/nowhere"}, FileNotFoundError, "/nowhere"),
        ({"start": "/nowhere.pt"}, FileNotFoundError, "nowhere.pt"),
        ({"finetune.dtype": "float16"}, ValueError, "unknown dtype 'float16'"),
        ({"probe.strengths": ()}, ValueError, "head/kernel"),
        ({"arch": "clip-vit-b16"}, ValueError, "clip-vit-b16"),
    ],
)
def test_wrong_fine_tunings_are_refused(folder, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        imagenet_finetune.run(changed(finetune_config(folder), changes), tmp_path / "run")
    assert not (tmp_path / "run" / "stages" / "first_member.json").exists()


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "imagenet").glob("*.py")), ids=lambda path: path.stem)
def test_every_config_has_the_fields_and_a_known_architecture(path):
    config = default_config(path.stem)
    experiment = {"imagenet_soups": imagenet_soups, "imagenet_finetune": imagenet_finetune}[config["experiment"]]
    fields = experiment.run.__globals__["FIELDS"]
    assert {name for name in config if not isinstance(config[name], dict)} == set(fields[""])
    assert all(set(config[section]) == set(names) for section, names in fields.items() if section)
    assert config["name"] == path.stem
    architecture(config["arch"])
