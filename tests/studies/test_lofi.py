"""Run the study of lo-fi, small, as users do; see its rows against the members that it keeps."""

import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
import small_domains
from small_domains import SIZE, Net, write_all

from soups import Pool
from soups.data.domains import load_domains
from soups.models import functional
from soups.plugins import load_plugin
from soups.report import load_results
from soups.studies import lofi

CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "lofi.py"


def small(data_dir, **changes):
    """Return the config as the command line hands it to the study."""
    sys.modules.setdefault("small_domains", small_domains)  # whose network the config names
    config = load_plugin(CONFIG).get_config()
    config.data_dir, config.dataset, config.test_domains, config.image_size = str(data_dir), "squares", ("dark",), SIZE
    config.model.update(arch="small_domains:net", start=str(data_dir / "start"), frozen_stages=0)
    config.workers.update(count=3, steps=5, batch_size=4, learning_rate=1e-2)
    config.exchange.every = (2,)
    config.update(changes)
    return json.loads(json.dumps(config.to_dict()))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with sets of domains and start weights."""
    folder = tmp_path_factory.mktemp("sets")
    write_all(folder)
    return folder


@pytest.fixture(scope="module")
def finished(data_dir, tmp_path_factory):
    """Return a finished run."""
    workdir = tmp_path_factory.mktemp("run") / "lofi"
    lofi.run(small(data_dir), workdir)
    return workdir


def rows_of(workdir):
    return {row["name"]: row for row in load_results(workdir)["rows"]}


def test_rows_are_those_of_what_is_compared(finished, data_dir):
    rows, pool = rows_of(finished), Pool(finished / "pool")
    assert list(rows) == [
        *("linear probe", "one worker", "all-reduce", "all-reduce, rate × 2"),
        *("local SGD, every 2 steps", "DiLoCo, every 2 steps", "lo-fi", "ensemble"),
    ]
    images = load_domains(data_dir, "squares", image_size=SIZE)["dark"].data
    apply_fn = functional.apply_fn(Net(3), (0.5,) * 3, (0.5,) * 3)

    def logits(params):
        return np.asarray(apply_fn(params, images.images.astype(np.float32) / 255))

    def accuracy(logits):
        return np.mean(np.argmax(logits, axis=1) == images.labels)

    workers = [pool[f"seed0_squares_dark_worker_{index}"] for index in range(3)]
    average = jax.tree.map(lambda *leaves: np.mean(np.float64(leaves), axis=0).astype(np.float32), *workers)
    shift = {name: row["metrics"]["dark"]["accuracy"] for name, row in rows.items()}
    assert shift["lo-fi"] == pytest.approx(accuracy(logits(average)))
    assert shift["one worker"] == pytest.approx(np.mean([accuracy(logits(one)) for one in workers]))
    assert shift["ensemble"] == pytest.approx(accuracy(sum(map(logits, workers))))
    assert shift["all-reduce"] == pytest.approx(accuracy(logits(pool["seed0_squares_dark_all-reduce"])))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(workers[0]["params"]))
    sent = {name: row["cost"]["sent"] / size for name, row in rows.items()}
    assert sent == {
        **dict.fromkeys(("linear probe", "one worker"), 0),
        **dict.fromkeys(("lo-fi", "ensemble"), 1),
        **{f"{what}, every 2 steps": 3 for what in ("local SGD", "DiLoCo")},
        **{f"all-reduce{rate}": 5 for rate in ("", ", rate × 2")},
    }


def test_claims_are_differences_of_the_rows(finished):
    rows = {name: row["metrics"] for name, row in rows_of(finished).items()}
    found = {claim["title"]: claim["value"] for claim in load_results(finished)["claims"]}
    shift = [rows[name]["shift_mean"]["accuracy"] for name in ("lo-fi", "all-reduce")]
    assert found["lo-fi > all-reduce, under shift"] == pytest.approx(shift[0] - shift[1])
    test = [rows[name]["test"]["accuracy"] for name in ("lo-fi", "all-reduce")]
    title = "lo-fi at most 1 point below all-reduce, in distribution"
    assert found[title] == pytest.approx(test[0] - test[1] + 0.01)


def test_processes_that_join_make_the_same_and_a_killed_run_goes_on(finished, data_dir, tmp_path, monkeypatch):
    made, fill = [], lofi.Crew.fill

    def killed(crew):
        jobs = dict(list(crew.jobs.items())[:4])
        vars(crew)["jobs"] = jobs
        fill(crew)
        made.extend(jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(lofi.Crew, "fill", killed)
    with pytest.raises(KeyboardInterrupt):
        lofi.run(small(data_dir), tmp_path / "run")
    monkeypatch.undo()
    lofi.run(small(data_dir), tmp_path / "run", join=True)
    assert not (tmp_path / "run" / "results.json").exists()
    there, here = Pool(finished / "pool"), Pool(tmp_path / "run" / "pool")
    assert set(here) == set(there) and len(made) == 4 < len(here)
    for name in here:
        assert here.digest(name) == there.digest(name)
    lofi.run(small(data_dir), tmp_path / "run")
    assert rows_of(tmp_path / "run") == rows_of(finished)


def test_other_exchanges_are_added_to_a_run(finished, data_dir, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    made = dict(Pool(tmp_path / "run" / "pool").record("seed0_squares_dark_worker_0"))
    config = small(data_dir)
    config["exchange"]["every"], config["all_reduce"]["factors"] = [5], [1.0]
    lofi.run(config, tmp_path / "run")
    rows = rows_of(tmp_path / "run")
    assert "local SGD, every 5 steps" in rows and "local SGD, every 2 steps" not in rows
    assert Pool(tmp_path / "run" / "pool").record("seed0_squares_dark_worker_0") == made
    config["outer"]["momentum"] = 0.5
    with pytest.raises(ValueError, match=r"outer.momentum: 0.9 there, 0.5 now"):
        lofi.run(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"test_domains": ()}, "config.test_domains must name at least one domain"),
        ({"workers.count": 1}, "config.workers.count must be"),
        ({"exchange.every": (0,)}, "config.exchange.every must be"),
        ({"all_reduce.factors": (2.0,)}, "config.all_reduce.factors must have 1.0"),
    ],
)
def test_a_config_that_cannot_be_run_is_refused(data_dir, tmp_path, change, message):
    config = small(data_dir)
    for name, value in change.items():
        *sections, last = name.split(".")
        place = config
        for section in sections:
            place = place[section]
        place[last] = value
    with pytest.raises(ValueError, match=message):
        lofi.run(config, tmp_path / "run")
