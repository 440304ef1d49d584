"""Run the studies of recycling, small, as users do; stop one; run them wrongly."""

import json
import threading
import time

import jax
import numpy as np
import pytest
from small_domains import SIZE, Net, config_of, write_all, write_set

from soups import Pool
from soups.data.domainbed import random_hyperparameters, split_positions
from soups.data.domains import load_domains
from soups.models import functional
from soups.pool import load_checkpoint
from soups.report import load_results
from soups.report.words import sentences
from soups.studies import diversity, domainbed, fusing

STUDIES = {"domainbed": domainbed, "diversity": diversity, "fusing": fusing}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with sets of domains and start weights."""
    folder = tmp_path_factory.mktemp("sets")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run of the main study, on two of the three domains."""
    workdir = tmp_path_factory.mktemp("run") / "domainbed"
    domainbed.run(small("domainbed", data_dir), workdir)
    return workdir


def small(name, data_dir, **changes):
    """Return a config as the command line hands it to a study."""
    config = config_of(name, data_dir)
    if name == "domainbed":
        config.test_domains, config.fusing.members = ("dark", "noisy"), 2
        config.methods.ties.update(density=(0.2, 0.8), scale=(1.0,))
        del config.methods.geometric_median
        config.fisher.examples, config.leave_one_out = 4, True
    elif name == "diversity":
        config.test_domains, config.pairs.barrier_ts = ("dark",), (0.5,)
        config.runs.members = 2
    else:
        config.weight_decays = (0.0,)
        config.cold.update(rounds=1, steps=2)
        config.joint.steps = 4
    config.update(changes)
    return json.loads(json.dumps(config.to_dict()))


def one_domain(data_dir):
    """Return the config of what the finished run does for its first domain, without other methods."""
    config = small("domainbed", data_dir, test_domains=("dark",))
    config["methods"], config["leave_one_out"], config["fisher"]["examples"] = {}, False, 0
    return config


def see_the_same(finished, workdir):
    """See that a run of one domain has the members and numbers of the finished run, to the bit."""
    whole = {row["name"]: row["metrics"] for row in load_results(finished)["rows"]}
    rows = load_results(workdir)["rows"]
    assert len(rows) > 20
    for row in rows:
        assert {split: whole[row["name"]][split] for split in ("dark", "without dark")} == {
            split: row["metrics"][split] for split in ("dark", "without dark")
        }
    there, here = Pool(finished / "pool"), Pool(workdir / "pool")
    for name in here:
        jax.tree.map(np.testing.assert_array_equal, here[name], there[name])


def accuracy_of(params, domain):
    logits = functional.apply_fn(Net(3), (0.5,) * 3, (0.5,) * 3)(params, domain.data.images.astype(np.float32) / 255)
    return np.mean(np.argmax(logits, 1) == domain.data.labels)


def mean_tree(trees):
    return jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0).astype(np.float32), *trees)


# --- Domains that are left out ---


def test_rows_are_those_of_the_papers_over_the_domains(finished):
    rows = load_results(finished)["rows"]
    greedy = ["greedy soup", "greedy soup from a random head", "model ratatouille, greedy"]
    best = ["ERM", "MA", "SWAD", "ERM from a random head", "inter-training", "fusing"]
    kinds = ["uniform soup", "uniform soup from a random head", *greedy, *best]
    kinds += [f"model ratatouille, {one}" for one in ("uniform", "only more", "only others")]
    kinds += [
        f"{one}, {space}"
        for one in ("ensemble", "ensemble of recycled members")
        for space in ("logits", "probabilities")
    ]
    kinds += [f"{one}, {how}" for one in (*greedy, *best, "ties") for how in ("oracle", "leave-one-out")]
    kinds += ["linear probe", "mean member", "ties", "model_stock", "fisher"]
    assert sorted(row["name"] for row in rows) == sorted(kinds)
    for row in rows:
        for whole, parts in (("test", ["dark", "noisy"]), ("held_out", ["without dark", "without noisy"])):
            mean = np.mean([row["metrics"][part]["accuracy"] for part in parts])
            assert row["metrics"][whole]["accuracy"] == pytest.approx(mean)


def test_soups_are_tested_on_the_domain_that_their_members_did_not_see(finished, data_dir):
    data, pool = load_domains(data_dir, "squares", image_size=SIZE), Pool(finished / "pool")
    rows = {row["name"]: row["metrics"] for row in load_results(finished)["rows"]}
    recycled = ["probed_00", "recycled_01", "recycled_02"]  # of three starts, the pre-trained one first
    for title, names in {
        "uniform soup": [f"probed_{i:02d}" for i in range(3)],
        "model ratatouille, uniform": recycled,
    }.items():
        for domain in ("dark", "noisy"):
            soup = mean_tree([pool[f"seed0_squares_{domain}_{name}"] for name in names])
            assert rows[title][domain]["accuracy"] == pytest.approx(accuracy_of(soup, data[domain]))


def test_members_have_the_hyperparameters_that_domainbed_draws(finished):
    members = {one["name"]: one["config"] for one in load_results(finished)["members"]["0"]}
    for index in range(3):
        drawn = random_hyperparameters(index, 0) | {"batch_size": 4, "run": index}
        drawn["learning_rate"] *= 2.0
        for family in ("probed", "random_head"):
            assert members[f"dark {family}_{index:02d}"] == pytest.approx(drawn)


def test_statistics_are_those_of_the_start_in_all_members(finished, data_dir):
    pool = Pool(finished / "pool")
    kept = [pool[name]["batch_stats"] for name in pool]
    jax.tree.map(lambda *leaves: [np.testing.assert_array_equal(leaf, leaves[0]) for leaf in leaves], *kept)


def test_erm_is_the_best_on_held_out_images_of_the_other_domains(finished, data_dir):
    data, pool = load_domains(data_dir, "squares", image_size=SIZE), Pool(finished / "pool")
    rows = {row["name"]: row["metrics"] for row in load_results(finished)["rows"]}
    scores = []
    for name in [f"seed0_squares_dark_probed_{index:02d}" for index in range(3)]:
        right = []
        for place in (1, 2):
            domain = data.domains[place]
            held_out = split_positions(len(domain), 0, place)[1]
            logits = functional.apply_fn(Net(3), (0.5,) * 3, (0.5,) * 3)(
                pool[name], domain.data.images[held_out].astype(np.float32) / 255
            )
            right += (np.argmax(logits, 1) == domain.data.labels[held_out]).tolist()
        scores.append(np.mean(right))
    assert rows["ERM"]["without dark"]["accuracy"] == pytest.approx(max(scores))


def test_leaving_one_more_domain_out_chooses_runs_and_soups_that_are_best_there_on_average(finished, data_dir):
    data, pool = load_domains(data_dir, "squares", image_size=SIZE), Pool(finished / "pool")
    rows = {row["name"]: row["metrics"] for row in load_results(finished)["rows"]}

    def of(others, make):
        made = [make([pool[f"seed0_squares_{pair}_probed_{run:02d}"] for run in range(3)]) for pair in others]
        return round(sum(accuracy_of(one, data[domain]) for one, domain in zip(made, others.values(), strict=True)), 9)

    others = {"dark-light": "light", "dark-noisy": "noisy"}
    scores = [of(others, lambda members, run=run: members[run]) for run in range(3)]
    order = sorted(range(3), key=lambda run: (-scores[run], -run))
    taken, best = order[:1], scores[order[0]]
    for run in order[1:]:
        score = of(others, lambda members, some=(*taken, run): mean_tree([members[one] for one in some]))
        taken, best = ([*taken, run], score) if score >= best else (taken, best)
    members = [pool[f"seed0_squares_dark_probed_{run:02d}"] for run in range(3)]
    for title, wanted in {"ERM": members[order[0]], "greedy soup": mean_tree([members[run] for run in taken])}.items():
        found = rows[f"{title}, leave-one-out"]["dark"]["accuracy"]
        assert found == pytest.approx(accuracy_of(wanted, data["dark"]))


def test_no_choice_is_better_on_the_test_domain_than_the_one_that_it_made(finished):
    results = load_results(finished)
    rows = {row["name"]: row["metrics"] for row in results["rows"]}
    told = {title.removesuffix(", oracle"): rows[title] for title in rows if title.endswith(", oracle")}
    assert len(told) == 10
    for title in told.keys() - {name for name in told if "greedy" in name}:
        for domain in ("dark", "noisy"):
            assert told[title][domain]["accuracy"] >= rows[title][domain]["accuracy"]
    assert not any("oracle" in one for one in sentences(results))


def test_claims_are_differences_of_rows(finished):
    results = load_results(finished)
    accuracy = {row["name"]: row["metrics"]["test"]["accuracy"] for row in results["rows"]}
    found = {one["title"]: one["value"] for one in results["claims"]}
    assert len(found) == 11
    for title, value in found.items():
        better, _, than = title.partition(" > ")
        assert value == pytest.approx(accuracy[better] - accuracy[than])


def test_a_run_that_is_stopped_goes_on_to_the_same_results(finished, data_dir, tmp_path, monkeypatch):
    workdir, add, count = tmp_path / "run", Pool.add, iter(range(1000))

    def until(self, *args, **kwargs):
        if next(count) in (5, 12, 19):
            raise KeyboardInterrupt
        return add(self, *args, **kwargs)

    monkeypatch.setattr(Pool, "add", until)
    stops = 0
    while not (workdir / "results.json").exists():
        try:
            domainbed.run(one_domain(data_dir), workdir)
        except KeyboardInterrupt:
            stops += 1
    assert stops == 3
    see_the_same(finished, workdir)


def test_other_methods_are_cooked_from_the_same_members(finished, data_dir, monkeypatch):
    monkeypatch.setattr(Pool, "add", lambda self, *args, **kwargs: pytest.fail("something was trained"))
    before = load_results(finished)
    config = small("domainbed", data_dir)
    config["methods"], config["fisher"] = {}, {"examples": 0}
    domainbed.run(config, finished)
    names = [[row["name"] for row in results["rows"]] for results in (load_results(finished), before)]
    assert names[0] == [name for name in names[1] if not name.startswith(("ties", "model_stock", "fisher"))]


def test_members_that_are_trained_side_by_side_are_those_that_are_trained_alone(finished, data_dir, tmp_path):
    config = one_domain(data_dir)
    config["runs"]["mode"] = "sharded"
    domainbed.run(config, tmp_path / "run")
    for kind in ("pool", "ma", "swad"):
        alone, beside = Pool(finished / kind), Pool(tmp_path / "run" / kind)
        for name in beside:
            jax.tree.map(lambda *two: np.testing.assert_allclose(*two, rtol=1e-3, atol=1e-5), beside[name], alone[name])
    assert (
        len(Pool(tmp_path / "run" / "pool")) == 10
    )  # three from each start but the pre-trained trunk's, and two fused


def run_and_join(study, config, workdir, monkeypatch) -> list[tuple[str, str, str]]:
    """Run a study while another thread joins it; return the pool and name of what was added, and who added it."""
    made, joined, add = [], threading.Event(), Pool.add
    monkeypatch.setattr("soups.pool.claims._SECONDS", 0.01)

    def adding(self, name, *args, **kwargs):
        who = threading.current_thread().name
        if self.path.name == "pool" and who == "begun":
            joined.wait(timeout=100)  # until the other has made one too
        made.append((self.path.name, name, who))
        result = add(self, name, *args, **kwargs)
        if self.path.name == "pool" and who == "joining":
            joined.set()
        return result

    monkeypatch.setattr(Pool, "add", adding)
    joining = threading.Thread(target=lambda: study.run(config, workdir, join=True), name="joining")
    begun = threading.Thread(target=lambda: study.run(config, workdir), name="begun")
    begun.start()
    while not (workdir / "config.json").exists():
        time.sleep(0.01)
    joining.start()
    for thread in (begun, joining):
        thread.join()
    return made


def test_a_process_that_joins_a_run_makes_members_for_it(finished, data_dir, tmp_path, monkeypatch):
    config, workdir = one_domain(data_dir), tmp_path / "run"
    with pytest.raises(ValueError, match="has no run to join"):
        domainbed.run(config, workdir, join=True)
    made = run_and_join(domainbed, config, workdir, monkeypatch)
    assert len({place[:2] for place in made}) == len(made) and {place[2] for place in made} == {"joining", "begun"}
    see_the_same(finished, workdir)


# --- The other studies ---


def test_diversity_measures_pairs_by_what_differs(data_dir, tmp_path):
    diversity.run(small("diversity", data_dir), tmp_path / "run")
    results = load_results(tmp_path / "run")
    kinds = [pair["of"]["differ"] for pair in results["pairs"]]
    # one pair in each group of two; of each run one for each two of three starts
    assert {kind: kinds.count(kind) for kind in kinds} == {"seed": 1, "hyper-parameters": 1, "auxiliary start": 6}
    data, pool = load_domains(data_dir, "squares", image_size=SIZE), Pool(tmp_path / "run" / "pool")
    pair = next(pair for pair in results["pairs"] if pair["of"]["differ"] == "auxiliary start")
    ends = [pool[f"seed0_squares_dark_{pair[end]}"] for end in "ab"]
    alone = np.mean([accuracy_of(end, data["dark"]) for end in ends])
    average = accuracy_of(mean_tree(ends), data["dark"])
    assert pair["values"]["gain"] == pytest.approx(average - alone)
    assert pair["values"]["barrier"] == pytest.approx(max(0.0, alone - average))
    shares = [row["of"]["share"] for row in results["rows"] if row["group"] == "curve" and "share" in row["of"]]
    assert set(shares) == {0.0, 0.5, 1.0}


def test_fusing_starts_from_averages_of_the_other_sets(data_dir, tmp_path, monkeypatch):
    made = run_and_join(fusing, small("fusing", data_dir), tmp_path / "run", monkeypatch)
    assert len({place[:2] for place in made}) == len(made) and {place[2] for place in made} == {"joining", "begun"}
    results = load_results(tmp_path / "run")
    rows = {row["name"]: row["metrics"] for row in results["rows"] if row["group"] == "main"}
    singles = [row for row in results["rows"] if row["group"] == "curve"]
    places = {(row["of"]["start"], row["of"]["target"]) for row in singles}
    sets = ("squares", "more", "others")
    assert places == {(start, target) for start in ("pre-trained", *sets) for target in sets if start != target}
    of_more = [row["metrics"]["test"]["accuracy"] for row in singles if row["of"]["target"] == "more"][1:]
    assert rows["inter-training, mean"]["more"]["accuracy"] == pytest.approx(np.mean(of_more))
    joint, start = Pool(tmp_path / "run" / "joint"), load_checkpoint(data_dir / "start")
    for name in joint:  # statistics are normalised by, and not trained, on several sets at once too
        jax.tree.map(np.testing.assert_array_equal, joint[name]["batch_stats"], start["batch_stats"])
    halves = [title for title in rows if title.startswith("fusing half")]
    best = "fusing the best half, in hindsight"
    assert len(halves) == 4 and all(rows[best][t]["accuracy"] >= rows[h][t]["accuracy"] for t in sets for h in halves)


# --- What was published ---


def test_rows_of_a_known_set_stand_beside_what_was_published_for_it():
    domains = {name: {"accuracy": 0.5} for name in "ACPS"}
    rows = [{"name": name, "metrics": {"test": {"accuracy": 0.5}, **domains}} for name in ("ERM", "SWAD", "ties")]
    erm, swad, ties = domainbed.beside_published("PACS", rows)
    assert {split: one["value"] for split, one in erm["published"].items()} == pytest.approx(
        {"test": 0.859, "A": 0.847, "C": 0.808, "P": 0.972, "S": 0.793}
    )
    assert swad["published"]["test"]["value"] == pytest.approx(0.881) and "published" not in ties
    fewer = {"name": "ERM", "metrics": {"test": {"accuracy": 0.5}, "A": {"accuracy": 0.5}}}
    assert domainbed.beside_published("PACS", [fewer])[0]["published"].keys() == {"A"}  # the mean is of all domains
    assert domainbed.beside_published("icons", rows) == rows


# --- What is wrong ---


@pytest.mark.parametrize(
    ("names", "place", "value", "message"),
    [
        (STUDIES, "dataset", "nowhere", "no set 'nowhere'"),
        (STUDIES, "auxiliary", ("more", "squares"), "no image of the test set squares"),
        (("diversity", "fusing"), "auxiliary", (), "config.auxiliary must name"),
        (STUDIES, "model.start", None, "config.model.start"),
        (STUDIES, "model.frozen_stages", 2, "frozen_stages must be .* from 0 to 0, of small, not 2"),
        (STUDIES, "runs.ranges", "wide", "wide"),
        (STUDIES, "runs.mode", "shared", "config.runs.mode 'shared'"),
        (("domainbed", "diversity"), "test_domains", ("bright",), "bright"),
        (("domainbed",), "methods.ties", {"dens": (1,)}, "dens"),
        (("domainbed",), "methods.fisher", {}, "more than members"),
        (("domainbed", "diversity"), "runs.members", 1, "config.runs.members must be at least 2"),
        (("fusing",), "weight_decays", (), "config.weight_decays"),
    ],
)
def test_a_wrong_config_is_one_error_before_anything_is_trained(names, place, value, message, data_dir, tmp_path):
    for name in names:
        config = small(name, data_dir)
        section, _, field = place.rpartition(".")
        (config[section] if section else config)[field] = value
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            STUDIES[name].run(config, tmp_path / name)
        assert not list(tmp_path.glob("*/*pool/*"))


def test_domains_of_other_classes_are_refused(data_dir, tmp_path):
    write_set(tmp_path / "odd", ["dark", "light"], ["a", "b"])
    write_set(tmp_path / "odd", ["noisy"], ["a", "c"])
    config = small("domainbed", data_dir) | {"data_dir": str(tmp_path), "dataset": "odd", "auxiliary": ()}
    with pytest.raises(ValueError, match="classes"):
        domainbed.run(config, tmp_path / "run")
