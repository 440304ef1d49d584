"""Read folders of texts in every layout, choose shots as LM-BFF does, and cut batches to few lengths."""

import itertools
import pathlib

import numpy as np
import pytest

from soups.data import batch_indices, by_length, joined, k_shot_rows, load_text_task, shortened, text_batches
from soups.data.texts import TextDataset


def write(folder, **files):
    """Write files of lines; a name ends in _csv or _tsv."""
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        stem, _, suffix = name.rpartition("_")
        (folder / f"{stem}.{suffix}").write_text("\n".join([*lines, ""]), encoding="utf-8")
    return folder


PLAIN = ["a film\tgood", "no film\tbad", "so-so\tgood"]
PAIRS = ["a\tb\tyes", "c\td\tno"]


# --- Layouts ---


def test_plain_lines_are_text_and_label(tmp_path):
    folder = write(
        tmp_path / "mine", train_tsv=PLAIN, val_tsv=["well\tgood"], test_tsv=["“x” \u2028 y\tbad", "z\tgood"]
    )
    task = load_text_task(folder)
    assert (task.name, task.class_names) == ("mine", ("bad", "good"))
    assert list(task.train.texts) == ["a film", "no film", "so-so"] and task.train.second is None
    assert task.train.labels.tolist() == [1, 0, 1] and task.train.labels.dtype == np.int32
    assert list(task.test.texts) == ["“x” \u2028 y", "z"] and len(task.held_out) == 1
    assert task.facts == {"layout": "plain", "shared": {"held_out": 0, "test": 0}}


def test_plain_pairs_have_second_texts_and_numbers_are_sorted_as_such(tmp_path):
    train = ["a\tb\t10", "c\td\t9", "e\tf\t-1"]
    task = load_text_task(write(tmp_path / "pairs", train_tsv=train, val_tsv=["g\th\t9"], test_tsv=["i\tj\t10"]))
    assert task.class_names == ("-1", "9", "10") and task.train.labels.tolist() == [2, 1, 0]
    assert list(task.train.second) == ["b", "d", "f"] and list(task.test.texts) == ["i"]


GLUE = {
    "sst-2": (["sentence\tlabel", "fine \t1", "poor\t0"], ["fine ", "poor"], None, ("0", "1")),
    "rte": (
        ["index\tsentence1\tsentence2\tlabel", "0\ta\tb\tnot_entailment", "1\tc\td\tentailment"],
        ["a", "c"],
        ["b", "d"],
        ("entailment", "not_entailment"),
    ),
    "qnli": (
        ["index\tquestion\tsentence\tlabel", "0\ta\tb\tentailment", "1\tc\td\tnot_entailment"],
        ["a", "c"],
        ["b", "d"],
        ("entailment", "not_entailment"),
    ),
    "mrpc": (
        ["\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t7\t8\t"a\tb', "0\t9\t10\tc\td"],
        ['"a', "c"],
        ["b", "d"],
        ("0", "1"),
    ),
    "qqp": (
        ["id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\ta\tb\t0", "1\t3\t4\tc\td\t1"],
        ["a", "c"],
        ["b", "d"],
        ("0", "1"),
    ),
    "mnli": (
        ["index\tsentence1\tsentence2\tlabel1\tgold_label", "0\ta\tb\tx\tneutral", "1\tc\td\tx\tentailment"],
        ["a", "c"],
        ["b", "d"],
        ("entailment", "neutral"),
    ),
    "cola": (["gj04\t1\t\tShe ran.", "gj04\t0\t*\tRan she."], ["She ran.", "Ran she."], None, ("0", "1")),
}


@pytest.mark.parametrize("layout", GLUE)
def test_files_of_glue_are_read(tmp_path, layout):
    lines, texts, second, classes = GLUE[layout]
    dev = "dev_matched_tsv" if layout == "mnli" else "dev_tsv"
    body = lines[1:] if layout != "cola" else lines
    folder = write(tmp_path / layout, train_tsv=[*lines, *body], **{dev: lines})
    task = load_text_task(folder, held_out=2, layout="cola" if layout == "cola" else None)
    assert task.facts["layout"] == layout and task.class_names == classes
    assert list(task.test.texts) == texts and (task.test.second and list(task.test.second)) == second
    assert (len(task.train), len(task.held_out)) == (2, 2) and sorted(task.held_out.labels) == [0, 1]


STSB = ["index\tgenre\tsentence1\tsentence2\tscore", "0\tx\ta\tb\t5.000", "1\tx\tc\td\t2.4", "2\tx\te\tf\t0"]


def test_the_labels_of_sts_b_are_numbers(tmp_path):
    task = load_text_task(write(tmp_path / "STS-B", train_tsv=STSB, dev_tsv=STSB[:3]), held_out=1)
    assert task.class_names == () and task.facts["layout"] == "sts-b"
    assert task.test.labels.tolist() == [5.0, np.float32(2.4)] and task.test.labels.dtype == np.float32
    both = sorted([*task.train.labels.tolist(), *task.held_out.labels.tolist()])
    assert both == [0.0, np.float32(2.4), 5.0] and len(task.held_out) == 1
    assert list(task.test.take([1]).second) == ["d"]
    with pytest.raises(ValueError, match="shots are examples of each class, but its labels are numbers: give held_out"):
        load_text_task(tmp_path / "STS-B", shots=1)


def test_labels_of_plain_lines_may_be_numbers(tmp_path):
    rows = {"train_tsv": ["a\t3", "b\t2.5"], "val_tsv": ["c\t-1"], "test_tsv": ["d\t1e2"]}
    task = load_text_task(write(tmp_path / "mine", **rows), numbers=True)
    assert [part.labels.tolist() for part in (task.train, task.held_out, task.test)] == [[3, 2.5], [-1], [100]]
    with pytest.raises(ValueError, match=r"val.tsv: 2 labels of no number, 'nan' in line 1"):
        load_text_task(write(tmp_path / "mine", val_tsv=["c\tnan", "d\tx"]), numbers=True)
    with pytest.raises(ValueError, match=r"val.tsv has 2 texts in a line"):
        load_text_task(write(tmp_path / "mine", val_tsv=["c\td\t3"]), numbers=True)
    with pytest.raises(ValueError, match=r"train.tsv: all labels are 3"):
        load_text_task(write(tmp_path / "mine", val_tsv=["c\t1"], train_tsv=["a\t3", "b\t3"]), numbers=True)


def test_a_test_file_without_labels_does_not_report(tmp_path):
    lines = GLUE["rte"][0]
    unlabelled = ["index\tsentence1\tsentence2", "0\tu\tv"]
    folder = write(tmp_path / "RTE", train_tsv=[*lines, *lines[1:]], dev_tsv=lines, test_tsv=unlabelled)
    assert list(load_text_task(folder, held_out=0.5).test.texts) == ["a", "c"]
    with pytest.raises(ValueError, match="give held_out, how much of the training part selects, or shots"):
        load_text_task(folder)


def test_csv_files_are_label_and_text(tmp_path):
    folder = write(tmp_path / "trec", train_csv=['1,"who, me?"', "0,what", '1,"say ""it"""'], test_csv=["0,why"] * 2)
    task = load_text_task(folder, held_out=1)
    assert task.class_names == ("0", "1") and list(task.test.texts) == ["why", "why"]
    assert {*task.train.texts, *task.held_out.texts} == {"who, me?", "what", 'say "it"'}


def test_examples_that_parts_share_are_counted_and_said(tmp_path, caplog):
    folder = write(tmp_path / "twice", train_tsv=PLAIN, val_tsv=PLAIN[:2], test_tsv=["new\tbad"])
    assert load_text_task(folder).facts["shared"] == {"held_out": 2, "test": 0}
    assert "task twice: 2 examples of held_out are in its training part too" in caplog.text


@pytest.mark.parametrize("layout", [None, "plain"])
def test_a_csv_file_with_the_label_last_needs_its_layout(tmp_path, layout):
    lines = ["a film,good", "no film,bad", "so-so,good"]
    folder = write(tmp_path / "last", train_csv=lines, val_csv=["well,good"], test_csv=["z,bad"])
    if layout:
        assert load_text_task(folder, layout=layout).class_names == ("bad", "good")
    else:
        with pytest.raises(ValueError, match=r'train.csv: 3 labels for 2 texts, .* layout="plain" has the label last'):
            load_text_task(folder)


def test_labels_that_differ_only_in_case_or_blanks_are_said(tmp_path, caplog):
    train = [*PLAIN, "x\tGood", "y\t good ", "z\tnot  good", "u\tnot good"]
    folder = write(tmp_path / "alike", train_tsv=train, val_tsv=PLAIN[1:2], test_tsv=["new\tbad"])
    assert load_text_task(folder).class_names == ("Good", "bad", "good", "not  good", "not good")
    said = "task alike: labels that differ only in case or blanks are classes: "
    assert f"{said}'Good', line 4, 'good', line 1" in caplog.text
    assert f"{said}'not  good', line 6, 'not good', line 7" in caplog.text
    assert "task alike: 1 example of held_out is in its training part too" in caplog.text


# --- Shots ---


@pytest.mark.parametrize(("shots", "seed"), [(2, 13), (16, 42)])
def test_shots_are_chosen_as_lm_bff_does(shots, seed):
    labels = np.random.default_rng(0).integers(0, 3, 200).astype(np.int32)
    lines, chosen = list(enumerate(labels.tolist())), {}
    state = np.random.RandomState(seed)
    state.shuffle(lines)  # what their program does to lines
    for row, label in lines:
        chosen.setdefault(label, []).append(row)
    rows = k_shot_rows(labels, shots, seed)
    assert rows["train"].tolist() == list(itertools.chain(*(found[:shots] for found in chosen.values())))
    assert rows["held_out"].tolist() == list(itertools.chain(*(found[shots : 2 * shots] for found in chosen.values())))


def test_the_shots_of_a_seed_stay_the_same():
    labels = np.arange(12, dtype=np.int32) % 2
    rows = k_shot_rows(labels, 2, 13)
    assert {name: found.tolist() for name, found in rows.items()} == SHOTS


SHOTS = {"train": [5, 9, 8, 4], "held_out": [3, 7, 6, 10]}


def test_shots_of_a_folder_leave_the_test_part(tmp_path):
    lines = [f"text {number}\t{number % 2}" for number in range(20)]
    folder = write(tmp_path / "many", train_tsv=lines, test_tsv=["other\t0"])
    task = load_text_task(folder, shots=3, seed=1)
    assert (len(task.train), len(task.held_out), len(task.test)) == (6, 6, 1)
    assert np.bincount(task.train.labels).tolist() == np.bincount(task.held_out.labels).tolist() == [3, 3]
    assert not {*task.train.texts} & {*task.held_out.texts}
    with pytest.raises(ValueError, match="6 shots need 12 examples of each class, but class 0 has 10, 1 has 10"):
        load_text_task(folder, shots=6)
    with pytest.raises(ValueError, match="shots and held_out both say what selects"):
        load_text_task(folder, shots=3, held_out=2)


# --- Errors ---


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"val_tsv": ["x\tgood", "y\tugly", "z\tugly"]},
            "part has only the labels bad, good, .*\n.*val.tsv: 2 lines with the label 'ugly', the first is line 2",
        ),
        ({"val_tsv": ["x\ty\tgood"]}, "and 1 texts in a line:\n.*val.tsv has 2 texts in a line"),
        ({"train_tsv": ["a\tgood", " \tbad"]}, "train.tsv: 1 line with an empty text, the first is line 2"),
        ({"train_tsv": ["a\tgood", "b\t", "c\t "]}, "train.tsv: 2 lines with an empty label, the first is line 2"),
        ({"val_tsv": ["a\tgood", "b\t"]}, "val.tsv: 1 line with an empty label, the first is line 2"),
        ({"val_tsv": ["x\tGood"]}, r"1 line with the label 'Good', the first is line 1 \(did you mean 'good'\?\)"),
        ({"train_tsv": ["text\tlabel", *PLAIN]}, "train.tsv, line 1: text, label is a header, but .* remove it$"),
        ({"val_tsv": ["", "Sentence1\tSentence2\tClass", *PAIRS]}, "val.tsv, line 2: Sentence1, .* is a header"),
        ({"train_tsv": ["label\ttext", "good\ta"]}, "is a header.*: remove it. Its names .* each other's place"),
        (
            {f"{stem}_tsv": ["Satz\tArt", *PLAIN] for stem in ("train", "val", "test")},
            "train.tsv, line 1: Satz, Art is a header",
        ),
        (
            {"train_tsv": ["good\ta film", "bad\tno film", "good\tso-so"]},
            "train.tsv: 3 labels for 2 texts, the first, of line 1, is 'a film': it seems",
        ),
        ({"train_tsv": ["a\tgood", "b"]}, r"train.tsv: 1 line without the 2 columns of the first: line 2 has 1"),
        ({"train_tsv": ["a\tb\tc\tgood"]}, 'not 4 columns; CoLA needs layout="cola"'),
        ({"train_tsv": ["a\tgood"]}, "at least 2 classes, not 1"),
        (
            {"train_tsv": ["a\t3", "b\t2.5"]},
            "labels are numbers such as 2.5, but classes are expected: give the classes names .*numbers=True",
        ),
        ({"train_tsv": [""]}, r"train\.tsv (has no lines|is empty)"),
        ({"dev_tsv": ["a\tgood"]}, "several files for one split: val.tsv, dev.tsv"),
        ({"train_tsv": ["sentence", "a"], "val_tsv": ["sentence\tlabel"]}, "the training file has no labels"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, files, message):
    given = {"train_tsv": PLAIN, "val_tsv": ["well\tgood"], "test_tsv": ["z\tgood"]} | files
    with pytest.raises(ValueError, match=message):
        load_text_task(write(tmp_path / "task", **given))


def test_folders_without_splits_are_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_text_task(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match=r"no train\.tsv, with val\.tsv or dev\.tsv or test\.tsv beside it"):
        load_text_task(write(tmp_path / "half", train_tsv=PLAIN))
    with pytest.raises(ValueError, match="unknown layout 'glue'"):
        load_text_task(write(tmp_path / "half", test_tsv=PLAIN), layout="glue")


def test_texts_in_memory_are_checked():
    with pytest.raises(ValueError) as error:
        TextDataset(["a", ""], np.array([0, 2], np.int32), ("x", "y"), ["b"])
    assert str(error.value).splitlines()[1:] == [
        "  labels must be 0 to 1, but they go from 0 to 2",
        "  1 empty text, the first is number 1",
        "  1 second text for 2 labels",
    ]
    for labels in ([0, 1], np.array([0.0, 1.0], np.float32)):
        with pytest.raises(ValueError, match=r"labels must be an array of integers \[N\]"):
            TextDataset(["a", "b"], labels, ("x", "y"))
    assert TextDataset(["a", "b"], np.array([0, 1], np.int64), ("x", "y")).labels.dtype == np.int32


# --- Lengths ---


@pytest.fixture
def inputs(rng):
    """Return tokens of 20 texts, most of them short, padded to 64."""
    lengths = np.array([40, *rng.integers(1, 13, 19)])
    mask = np.arange(64)[None] < lengths[:, None]
    return {"tokens": np.where(mask, rng.integers(1, 99, mask.shape), 0).astype(np.int32), "mask": mask}


def test_batches_have_few_lengths_and_the_order_of_arrays(inputs):
    labels = np.arange(20, dtype=np.int32)
    batches = list(itertools.islice(text_batches(inputs, labels, 3, seed=5, lengths=(8, 16, 64)), 14))
    order = batch_indices(20, 3, 14, 5)
    for batch, rows in zip(batches, order, strict=True):
        np.testing.assert_array_equal(batch["label"], rows)
        width, longest = batch["image"]["tokens"].shape[1], inputs["mask"][rows].sum(axis=1).max()
        assert width == min(one for one in (8, 16, 64) if one >= longest)
        np.testing.assert_array_equal(batch["image"]["tokens"], inputs["tokens"][rows][:, :width])
    assert len({batch["image"]["mask"].shape for batch in batches}) > 1


def test_batches_go_on_where_they_were(inputs):
    batches = text_batches(inputs, np.arange(20, dtype=np.int32), 3, seed=5)
    first = iter(batches)
    expected = list(itertools.islice(first, 9))[8]
    again = iter(batches)
    again.set_state({"next_index": 8})
    np.testing.assert_array_equal(next(again)["image"]["tokens"], expected["image"]["tokens"])
    assert again.get_state() == first.get_state() == {"next_index": 9}


def test_batches_of_arrays_that_do_not_fit_are_errors(inputs):
    with pytest.raises(ValueError, match=r"numbers of examples: .'tokens': 20, 'mask': 20, 'label': 3"):
        text_batches(inputs, np.zeros(3, np.int32), 2, seed=0)
    with pytest.raises(ValueError, match="between 1 and 20 examples"):
        text_batches(inputs, np.zeros(20, np.int32), 21, seed=0)


def test_groups_of_a_length_join_to_all_examples(inputs):
    groups = by_length(inputs, 4, lengths=(8, 16, 64))
    assert {part["mask"].shape[1] for _, part in groups} <= {8, 16, 64} and max(len(rows) for rows, _ in groups) <= 4
    sums = joined((rows, part["tokens"].sum(axis=1)) for rows, part in groups)
    np.testing.assert_array_equal(sums, inputs["tokens"].sum(axis=1))


def test_nothing_but_padding_is_cut_off(inputs):
    short = shortened(inputs, lengths=(8, 40))
    assert short["tokens"].shape == (20, 40) and not inputs["mask"][:, 40:].any()
    assert shortened(inputs, lengths=(8, 50))["tokens"].shape == (20, 50)
    assert shortened(inputs, lengths=(8,))["tokens"].shape == (20, 40)


def test_the_page_writes_the_folder_that_it_reads(tmp_path, monkeypatch):
    page = pathlib.Path(__file__).parents[2] / "docs" / "text.md"
    first = page.read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(first, str(page), "exec"), {})
    task = load_text_task("data/reviews")
    assert task.class_names == ("bad", "good") and task.facts["shared"] == {"held_out": 0, "test": 0}
