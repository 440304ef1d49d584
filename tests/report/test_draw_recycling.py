"""Pairs by what differs, shares of a second start and starts by targets are drawn as NumPy and scipy have them."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from soups import report
from soups.report import draw_recycling, draw_rows, figures, style

SEEDS = (0, 1, 2)
DIFFER = ("seed", "hyper-parameters", "auxiliary start")
DOMAINS = ("photo", "sketch")
TARGETS = ("icons", "emoji")
STARTS = ("fused", "pre-trained", "inter-trained on icons")


@pytest.fixture(autouse=True)
def look():
    with style.look():
        yield


def make(rows=(), pairs=()):
    """Return results of two domains with these rows and pairs beside one main row."""
    splits = {"test": {"role": "test", "mean_of": list(TARGETS)}, "held_out": {"role": "held_out"}}
    splits |= {target: {"role": "test"} for target in TARGETS}
    metrics = {split: {"accuracy": 0.8} for split in splits}
    main = [{"seed": s, "name": "ERM", "kind": "member", "group": "main", "metrics": metrics} for s in SEEDS]
    return report.check(
        {
            "schema": report.results.SCHEMA,
            "experiment": "recycling",
            "created": "2026-01-02T03:04:05+00:00",
            "config": {},
            "versions": {"soups": "0.1.0"},
            "device": "cpu x2",
            "seeds": list(SEEDS),
            "reference": "ERM",
            "splits": splits,
            "rows": [*main, *rows],
            "pairs": list(pairs),
        }
    )


def make_pairs(rng, domains=DOMAINS):
    """Return twelve pairs for each seed, domain and difference; those of another start are the most diverse."""
    pairs = []
    for seed, domain, (place, differ) in itertools.product(SEEDS, domains, enumerate(DIFFER)):
        for index in range(12):
            ratio = 0.5 + 0.3 * place + 0.1 * rng.normal()
            values = {"ratio_error": ratio, "q_diversity": ratio / 4, "gain": 0.01 * ratio + 0.002 * rng.normal()}
            values |= {"barrier": 0.01 * rng.random(), "barrier_in_domain": 0.002 * rng.random()}
            of = {"differ": differ} | ({"domain": domain} if domain else {})
            pairs.append({"seed": seed, "a": f"{index}", "b": f"{index + 1}", "of": of, "values": values})
    return pairs


def measured(pairs, name, **of):
    """Return a value of all pairs that are of this."""
    return np.array([pair["values"][name] for pair in pairs if of.items() <= pair["of"].items()])


def test_diversity_is_drawn_with_the_line_and_the_correlation_of_scipy(rng):
    pairs = make_pairs(rng)
    panels = draw_recycling.diversity(make(pairs=pairs)).axes
    assert len(panels) == 4
    for axes, (measure, domain) in zip(panels, itertools.product(("ratio_error", "q_diversity"), DOMAINS), strict=True):
        x, y = measured(pairs, measure, domain=domain), 100 * measured(pairs, "gain", domain=domain)
        fit = stats.linregress(x, y)
        assert axes.get_title(loc="left") == f"{domain}, r = {stats.pearsonr(x, y).statistic:.2f}"
        line = next(line for line in axes.lines if len(set(line.get_ydata())) > 1)
        np.testing.assert_allclose(line.get_ydata(), fit.intercept + fit.slope * line.get_xdata())
        for found, differ in zip(axes.collections, DIFFER, strict=True):
            np.testing.assert_allclose(
                found.get_offsets()[:, 0], measured(pairs, measure, domain=domain, differ=differ)
            )
    (legend,) = panels[0].figure.legends
    assert [text.get_text() for text in legend.get_texts()] == list(DIFFER)


def test_pairs_of_no_domain_have_one_panel_for_each_measure_and_far_ones_lie_at_the_edge(rng):
    pairs = make_pairs(rng, [""])
    pairs[5]["values"]["gain"] = -0.6
    figure = draw_recycling.diversity(make(pairs=pairs))
    assert [axes.get_xlabel() for axes in figure.axes] == ["ratio error", "q-diversity"]
    assert figure.axes[0].get_ylim()[0] > -10
    assert "2 of 216 dots" in figure.texts[0].get_text().replace("\u00a0", " ")


def test_pairs_that_are_all_alike_have_no_correlation(rng):
    pairs = make_pairs(rng, [""])
    for pair in pairs:
        pair["values"] = {"ratio_error": 0.7, "gain": 0.1}
    (axes,) = draw_recycling.diversity(make(pairs=pairs)).axes
    assert axes.get_title(loc="left") == ""
    assert draw_recycling.barriers(make(pairs=pairs)) is None


def test_barriers_have_the_median_and_the_quartiles_of_numpy(rng):
    pairs = make_pairs(rng)
    panels = draw_recycling.barriers(make(pairs=pairs)).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["out of domain", "in domain"]
    for axes, name in zip(panels, ("barrier", "barrier_in_domain"), strict=True):
        assert axes.get_yscale() == "linear"
        for place, differ in enumerate(DIFFER):
            values = 100 * measured(pairs, name, differ=differ)
            low, median, high = np.percentile(values, [25, 50, 75])
            box = axes.patches[place]
            assert (box.get_y(), box.get_y() + box.get_height()) == pytest.approx((low, high))
            told = axes.get_xticklabels()[place].get_text().split("\n")
            above = f"{100 * (values > 1).mean():.0f} % above 1"
            assert told == [differ, "72 pairs", f"median {median:.2f}", above]


def test_where_connectivity_fails_the_axis_is_logarithmic_and_holds_all(rng):
    pairs = make_pairs(rng)
    pairs[3]["values"]["barrier"] = 0.55
    axes = draw_recycling.barriers(make(pairs=pairs)).axes[0]
    assert axes.get_yscale() == "symlog" and axes.get_ylim()[1] > 55


def share_rows(rng, base=True, named=False):
    """Return soups of shares of two second starts, with the mean of their members; the starts may be in the names."""
    rows = []
    for seed, start, share in itertools.product(SEEDS, ("emoji", "fonts"), (0.0, 0.5, 1.0)):
        for name, level in (("uniform soup", 0.8), ("mean member", 0.77))[: 1 + base]:
            metrics = {split: {"accuracy": level + 0.01 * rng.normal()} for split in ("test", "held_out")}
            of = {"share": share} | ({} if named else {"start": start})
            name += f" with {start}" * named
            rows.append({"seed": seed, "name": name, "kind": "soup", "group": "curve", "of": of, "metrics": metrics})
    return rows


def drawn_lines(axes):
    """Yield what lies along each line with whiskers: the means and the ends of the whiskers."""
    for container in axes.containers:
        line, _, (whiskers,) = container.lines
        yield line.get_ydata(), np.array([segment[:, 1] for segment in whiskers.get_segments()])


@pytest.mark.parametrize(("base", "named"), [(True, False), (False, False), (True, True)])
def test_shares_are_paired_by_seed_with_the_interval_of_student(rng, base, named):
    rows = share_rows(rng, base, named)
    figure = draw_recycling.shares(make(rows))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["emoji", "fonts"]
    for axes, split in zip(figure.axes, ("test", "held_out"), strict=True):
        for start, (means, ends) in zip(("emoji", "fonts"), drawn_lines(axes), strict=True):
            for place, share in enumerate((0.0, 0.5, 1.0)):
                of = {"share": share} | ({} if named else {"start": start})
                end = f" with {start}" * named
                found, lower = (
                    np.array(
                        [r["metrics"][split]["accuracy"] for r in rows if r["name"] == name + end and r["of"] == of]
                    )
                    for name in ("uniform soup", "mean member")
                )
                values = 100 * (found - lower if base else found)
                assert means[place] == pytest.approx(values.mean())
                expected = stats.t.interval(0.95, 2, values.mean(), stats.sem(values))
                np.testing.assert_allclose(ends[place], expected)


def matrix_rows(rng, group="curve", name="fine-tuned"):
    """Return what fine-tuning from three starts gives on two targets; one was not measured."""
    rows = []
    for seed, start, target in itertools.product(SEEDS, STARTS, TARGETS):
        if not (start.endswith("icons") and target == "icons"):
            level = {"accuracy": 0.8 + 0.05 * (start == "fused") + 0.01 * rng.normal()}
            row = {"seed": seed, "name": name or start, "kind": "member", "group": group}
            rows.append(row | {"of": {"start": start, "target": target}, "metrics": {target: level}})
    return rows


@pytest.mark.parametrize("name", ["fine-tuned", ""])
def test_starts_are_compared_with_the_pretrained_one_of_the_same_seed(rng, name):
    rows = matrix_rows(rng, name=name)
    (axes,) = draw_recycling.starts(make(rows)).axes
    assert [text.get_text() for text in axes.get_xticklabels()] == list(TARGETS)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["pre-trained", "fused", "inter-trained on icons"]

    def of(start, target):
        found = [row for row in rows if row["of"] == {"start": start, "target": target}]
        return 100 * np.array([row["metrics"][target]["accuracy"] for row in found] or [math.nan] * 3)

    names = ("pre-trained", "fused", "inter-trained on icons")
    gains = np.array([[of(start, target) - of("pre-trained", target) for target in TARGETS] for start in names])
    image = axes.images[0].get_array()
    np.testing.assert_allclose(image.filled(math.nan), gains.mean(axis=-1), atol=1e-12)
    texts = {text.get_position(): text for text in axes.texts}
    assert len(texts) == 5 and (0, 2) not in texts
    for column, target in enumerate(TARGETS):
        assert texts[column, 0].get_text() == f"{of('pre-trained', target).mean():.1f} %"
        sure = stats.ttest_1samp(gains[1, column], 0).pvalue < 0.05
        assert (texts[column, 1].get_fontweight() == "bold") == sure


def test_the_first_start_may_be_named_as_the_reference(rng):
    rows = matrix_rows(rng)
    for row in rows:
        row["of"]["start"] = row["of"]["start"].replace("pre-trained", "ERM")
    (axes,) = draw_recycling.starts(make(rows)).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["ERM", "fused", "inter-trained on icons"]
    for row in rows:
        row["of"]["start"] = row["of"]["start"].replace("ERM", "another")
    assert draw_recycling.starts(make(rows)) is None


def test_a_matrix_of_main_rows_is_no_panel_of_the_overview(rng):
    rows = matrix_rows(rng, group="main")
    for row in rows:
        (level,) = row["metrics"].values()
        row["metrics"] = dict.fromkeys(("test", "held_out", *TARGETS), level)
    results = make(rows)
    assert len(draw_rows.overview(results).axes) == 1
    assert draw_recycling.starts(results) is not None


def test_two_rows_of_one_start_and_target_are_refused(rng):
    with pytest.raises(ValueError, match="the same start and target appear twice in 15 place"):
        make([*matrix_rows(rng), *(row | {"name": "probe"} for row in matrix_rows(rng))])
    probes = [row | {"of": row["of"] | {"with": "probe"}} for row in matrix_rows(rng)]
    panels = draw_recycling.starts(make([*matrix_rows(rng), *probes])).axes
    assert [axes.get_title(loc="left") for axes in panels] == ["", "with probe"]


def test_the_share_must_be_a_number(rng):
    rows = share_rows(rng)
    rows[0]["of"]["share"] = "half"
    with pytest.raises(ValueError, match=r"of\.share must be a number"):
        make(rows)


def test_figures_are_there_where_their_content_is_and_numbers_may_be_missing(rng):
    names = ("diversity", "barriers", "shares", "starts")
    results = make([*share_rows(rng), *matrix_rows(rng)], make_pairs(rng))
    assert all(figures.PLANS[name].draw(results) is not None for name in names)
    assert not any(figures.PLANS[name].draw(make()) for name in names)
    for row in results["rows"]:
        row["metrics"] = {split: dict.fromkeys(found) for split, found in row["metrics"].items()}
    for pair in results["pairs"]:
        pair["values"] = dict.fromkeys(pair["values"])
    drawn = {drawn.name for drawn in figures.draw_all(results)}
    assert "diversity" not in drawn and "barriers" not in drawn
