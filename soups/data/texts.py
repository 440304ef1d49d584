"""Read tasks of texts: a folder with a file of lines for each split, as GLUE, LM-BFF or plain tables have them."""

import collections
import dataclasses
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from soups.arguments import check_within
from soups.data.batches import BatchIterator, Order
from soups.data.dataset import class_name_problems
from soups.data.lengths import LENGTHS, shortened
from soups.data.splits import split_indices
from soups.files import PathLike, any_path
from soups.formats.text import numbered_lines, numbered_rows, read_text
from soups.names import check_name, count_of, did_you_mean, few, refuse

logger = logging.getLogger("soups")

_LARGEST = 2**30  # bytes of a file
# names of columns in headers, without numbers behind them
_TEXT = {
    "text",
    "texts",
    "sentence",
    "review",
    "comment",
    "content",
    "message",
    "document",
    "question",
    "title",
    "tweet",
}
_TEXT |= {"premise", "hypothesis"}
_LABEL = {"label", "labels", "class", "category", "target", "sentiment", "polarity", "topic", "intent", "emotion"}
_LABEL |= {"rating", "gold_label"}
_STEMS = {"train": ("train",), "held_out": ("val", "dev", "dev_matched"), "test": ("test", "test_matched")}


class Layout(NamedTuple):
    """Say which columns of a table are the texts and the label: names in its header, or numbers where it has none."""

    texts: tuple[Any, ...]
    label: Any


#: how files are laid out; "plain" is text, label or text, text, label, and "label,text" is that of .csv files
LAYOUTS = {
    "plain": Layout((), -1),
    "cola": Layout((3,), 1),
    "sst-2": Layout(("sentence",), "label"),
    "qnli": Layout(("question", "sentence"), "label"),
    "rte": Layout(("sentence1", "sentence2"), "label"),
    "mnli": Layout(("sentence1", "sentence2"), "gold_label"),
    "mrpc": Layout(("#1 String", "#2 String"), "Quality"),
    "qqp": Layout(("question1", "question2"), "is_duplicate"),
    "sts-b": Layout(("sentence1", "sentence2"), "score"),
    "label,text": Layout((1,), 0),
}


NUMBERS = ("sts-b",)  # layouts whose labels are numbers, not classes
_SWAP = 'label and text are in each other\'s place: layout="plain" has the label last, layout="label,text" first'


@dataclasses.dataclass(frozen=True, eq=False)
class TextDataset:
    """Keep one split of texts, or pairs of them; a ValueError lists what is not as stated here.

    Attributes:
        texts: N of them, none empty.
        labels: indices [N] into `class_names`, integers of any width, which are kept as int32; or, with no class names,
            finite numbers [N], which are kept as float32.
        class_names: at least two, or none where numbers are predicted.
        second: the second texts of pairs, or None.
    """

    texts: Sequence[str]
    labels: np.ndarray
    class_names: tuple[str, ...]
    second: Sequence[str] | None = None

    def __post_init__(self):
        refuse("not a valid set of texts", self._problems())
        kept = np.int32 if self.class_names else np.float32
        object.__setattr__(self, "labels", self.labels.astype(kept, copy=False))

    def _problems(self):
        labels, count = self.labels, len(self.class_names)
        yield from class_name_problems(self.class_names) if count else ()
        kind, wanted = (np.integer, "integers") if count else (np.floating, "numbers with a point")
        if not isinstance(labels, np.ndarray) or not np.issubdtype(labels.dtype, kind) or labels.ndim != 1:
            yield f"labels must be an array of {wanted} [N]"
        elif not count and not np.isfinite(labels).all():
            yield "labels must be finite numbers"
        elif not count:
            pass
        elif labels.size and not 0 <= labels.min() <= labels.max() < count:
            yield f"labels must be 0 to {count - 1}, but they go from {labels.min()} to {labels.max()}"
        for name, texts in {"texts": self.texts, "second texts": self.second}.items():
            if texts is None:
                continue
            if len(texts) != len(labels) or not len(texts):
                yield f"{count_of(len(texts), name[:-1])} for {count_of(len(labels), 'label')}"
            if empty := [index for index, text in enumerate(texts) if not text.strip()]:
                yield f"{count_of(len(empty), f'empty {name[:-1]}')}, the first is number {empty[0]}"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: Sequence[int] | np.ndarray) -> "TextDataset":
        """Return the examples of these rows, in that order."""
        second = None if self.second is None else [self.second[row] for row in rows]
        return dataclasses.replace(
            self, texts=[self.texts[row] for row in rows], labels=self.labels[np.asarray(rows)], second=second
        )


@dataclasses.dataclass(frozen=True, eq=False)
class TextTask:
    """Bundle the texts of a task, as `soups.data.Task` does images; `held_out` selects, `test` reports.

    A task without `class_names` has numbers for labels, as STS-B. `facts` are what was found on the way, as JSON can
    hold it.
    """

    name: str
    class_names: tuple[str, ...]
    train: TextDataset
    held_out: TextDataset
    test: TextDataset
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def load_text_task(
    path: PathLike,
    *,
    layout: str | None = None,
    held_out: int | float | None = None,
    shots: int | None = None,
    seed: int = 0,
    numbers: bool | None = None,
) -> TextTask:
    """Read a task from a folder with the files of its splits, in UTF-8 and without quoting.

        load_text_task("data/mine")                       # train.tsv, val.tsv, test.tsv: text<TAB>label
        load_text_task("GLUE/RTE", held_out=0.1)          # train.tsv and dev.tsv, whose labels report
        load_text_task("original/trec", shots=64)         # train.csv and test.csv of LM-BFF

    Lines are "text<TAB>label" or "text<TAB>text<TAB>label" without a header, or as GLUE has them, which is known by
    the names in the header; only CoLA, which has none, needs `layout="cola"`. In .csv files they are "label,text".
    Classes are the labels of the training part without blanks around them, sorted, as numbers where all are; those that
    differ only in case or blanks are a warning. Where a test file has no labels, as
    at GLUE, the validation part reports, and what selects is taken from the training part.

    Args:
        path: the folder; the files are train, val or dev or dev_matched, and test, with .tsv or .csv.
        layout: one of `soups.data.texts.LAYOUTS`.
        held_out: the number or the share of training examples that select, drawn with the seed, each class in its
            share; for a folder without a labelled file for each of the three splits.
        shots: so many examples of each class for training, and as many others to select, chosen as `k_shot_rows`.
        seed: of what is drawn.
        numbers: whether labels are numbers to predict, and no classes. None: those of STS-B are.

    Raises:
        FileNotFoundError: no such folder, or no files of splits in it.
        ValueError: lines with other columns; an empty text or label; a header where there should be none, or labels and
            texts in each other's place; labels that the training part does not have, or that are no classes but
            fractions; numbers that are none, or all equal; fewer than two classes; nothing that says what shall select;
            shots of numbers. Lines and counts are named.
    """
    folder = any_path(path)
    read = {split: _read(file, layout) for split, file in _files(folder).items()}
    labelled = {split: table for split, table in read.items() if table.labels is not None}
    if "train" not in labelled:
        raise ValueError(f"{folder}: the training file has no labels")
    numbers = read["train"].layout in NUMBERS if numbers is None else numbers
    sets = _numbered(labelled, folder) if numbers else _datasets(labelled, folder)
    train, facts = sets.pop("train"), {"layout": read["train"].layout}
    if shots is not None and held_out is not None:
        raise ValueError("shots and held_out both say what selects: give one of them")
    if shots is not None and numbers:
        raise ValueError(f"{folder}: shots are examples of each class, but its labels are numbers: give held_out")
    test = sets.get("test", sets.get("held_out"))
    if test is None:
        raise ValueError(f"{folder}: neither a val or dev file nor a test file has labels to report on")
    if shots is not None:
        rows = k_shot_rows(train.labels, shots, seed)
        train, selecting = train.take(rows["train"]), train.take(rows["held_out"])
    elif held_out is not None:
        rows = split_indices(len(train) if numbers else train.labels, {"held_out": held_out}, seed)["held_out"]
        rest = np.setdiff1d(np.arange(len(train)), rows)
        train, selecting = train.take(rest), train.take(rows)
    elif len(sets) == 2:
        selecting = sets["held_out"]
    else:
        raise ValueError(
            f"{folder} has labels for training and for one other split, which reports: give held_out, how much of the "
            "training part selects, or shots"
        )
    task = TextTask(folder.name, train.class_names, train, selecting, test, facts)
    return dataclasses.replace(task, facts=facts | {"shared": _shared(task)})


def k_shot_rows(labels: np.ndarray, shots: int, seed: int) -> dict[str, np.ndarray]:
    """Choose K examples of each class for training and K others to select, as LM-BFF does.

    The examples are shuffled by NumPy's legacy generator with the seed; of each class, in the order in which they then
    appear, the first K are "train" and the next K "held_out", in that order. A ValueError for a class with fewer.

    Gao et al., "Making pre-trained language models better few-shot learners", 2021, arXiv:2012.15723.
    """
    shots = check_within("shots", shots, "[1, inf)", whole=True)
    order = np.random.RandomState(seed).permutation(len(labels))
    by_class: dict[int, list[int]] = {}
    for row in order.tolist():
        by_class.setdefault(int(labels[row]), []).append(row)
    if short := [f"{label} has {len(rows)}" for label, rows in sorted(by_class.items()) if len(rows) < 2 * shots]:
        raise ValueError(f"{shots} shots need {2 * shots} examples of each class, but class {few(short)}")
    parts = {"train": slice(0, shots), "held_out": slice(shots, 2 * shots)}
    return {name: np.array([row for rows in by_class.values() for row in rows[part]]) for name, part in parts.items()}


def text_batches(
    inputs: Mapping[str, np.ndarray],
    labels: np.ndarray,
    batch_size: int,
    *,
    seed: int,
    lengths: Sequence[int] = LENGTHS,
) -> Iterable[dict[str, Any]]:
    """Make an endless iterable over batches of texts, for `soups.train.fit(..., steps=...)`.

        batches = text_batches(tokenize(texts), labels, 16, seed=0)

    A batch is {"image": inputs by name [B, T], "label": [B]}, T the smallest of `lengths` that holds its longest text:
    a program is compiled for each length that occurs, at most as many as there are `lengths`. The order is that of
    `soups.data.batch_indices`, whatever the lengths, and each `iter` of it goes on at any batch, as that of a `loader`.

    A ValueError for arrays of different numbers of examples, and as `batch_indices`.
    """
    counts = {name: len(array) for name, array in {**inputs, "label": labels}.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"the arrays have different numbers of examples: {counts}")
    order = Order(len(labels), batch_size, seed)

    def start(step: int) -> Iterator[dict[str, Any]]:
        while True:
            rows = order(step * batch_size, (step + 1) * batch_size)[1]
            yield {"image": shortened(inputs, rows, lengths), "label": labels[rows]}
            step += 1

    return _Batches(start)


class _Batches:
    def __init__(self, start):
        self._start = start

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self._start)


# --- Files ------------------------------------------------------------------------------------------------------------


class _Table(NamedTuple):
    """Hold what a file says: its name, its layout, the numbers of its lines, the columns of texts, and the labels."""

    file: str
    layout: str
    lines: list[int]
    texts: list[list[str]]
    labels: list[str] | None


def _files(folder) -> dict[str, pathlib.Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    found = {}
    for split, stems in _STEMS.items():
        names = [f"{stem}{suffix}" for stem in stems for suffix in (".tsv", ".csv")]
        there = [folder / name for name in names if (folder / name).is_file()]
        if len(there) > 1:
            raise ValueError(f"{folder} has several files for one split: {', '.join(one.name for one in there)}")
        if there:
            found[split] = there[0]
    if "train" not in found or len(found) == 1:
        raise FileNotFoundError(f"{folder}: no train.tsv, with val.tsv or dev.tsv or test.tsv beside it, nor as .csv")
    return found


def _read(file, layout) -> _Table:
    text = read_text(file, limit=_LARGEST)
    if file.suffix == ".csv":
        rows = list(numbered_rows(text))
    else:
        rows = [(number, line.split("\t")) for number, line in numbered_lines(text)]
    if not rows:
        raise ValueError(f"{file} has no lines")
    name = _layout(file, layout, rows[0][1])
    places, label = LAYOUTS[name]
    width = len(rows[0][1])
    if name == "plain":
        if width not in (2, 3):
            hint = '; CoLA needs layout="cola"' if width == 4 else ""
            raise ValueError(f"{file}: lines are text<TAB>label or text<TAB>text<TAB>label, not {width} columns{hint}")
        places, label = tuple(range(width - 1)), width - 1
    elif isinstance(label, str):
        header, rows = rows[0][1], rows[1:]
        if missing := [place for place in places if place not in header]:
            raise ValueError(f"{file} has no column {few(missing)}, only {few(header)}")
        places, label = tuple(map(header.index, places)), header.index(label) if label in header else None
    needed = max(place for place in (*places, label) if place is not None) + 1
    wrong = [f"line {number} has {len(row)}" for number, row in rows if len(row) < needed or len(row) != width]
    if wrong:
        lines = count_of(len(wrong), "line")
        raise ValueError(f"{file}: {lines} without the {width} columns of the first: {few(wrong, 5)}")
    if not isinstance(LAYOUTS[name].label, str):
        _check_no_header(file, rows[0], places, label)
    texts = [[row[place] for _, row in rows] for place in places]
    for what, columns in {"text": places, "label": () if label is None else (label,)}.items():
        if empty := [number for number, row in rows if not all(row[place].strip() for place in columns)]:
            raise ValueError(
                f"{file}: {count_of(len(empty), 'line')} with an empty {what}, the first is line {empty[0]}"
            )
    labels = None if label is None else [row[label].strip() for _, row in rows]
    return _Table(str(file), name, [number for number, _ in rows], texts, labels)


def _check_no_header(file, first, places, label):
    number, row = first
    words = [cell.strip().lower().rstrip("0123456789") for cell in row]
    if {words[place] for place in places} <= _TEXT | _LABEL and words[label] in _TEXT | _LABEL:
        _refuse_header(file, number, row, words[label] in _TEXT)


def _refuse_header(file, number, row, swapped=False):
    again = f". Its names say that {_SWAP}" if swapped else ""
    raise ValueError(f"{file}, line {number}: {few(row)} is a header, but this layout has none: remove it{again}")


def _layout(file, layout, first) -> str:
    if layout is not None:
        return check_name(layout, LAYOUTS, "layout")
    if file.suffix == ".csv":
        return "label,text"
    fits = {name: len(one.texts) for name, one in LAYOUTS.items() if one.texts and {*one.texts} <= {*first}}
    with_label = {name: count for name, count in fits.items() if LAYOUTS[name].label in first}
    fits = with_label or fits  # a test file of GLUE has no labels
    return max(fits, key=lambda name: fits[name], default="plain")


def _check_columns(tables):
    """Refuse a header of names of their own, and labels in the place of texts."""
    firsts = {(table.labels[0], *(column[0] for column in table.texts)) for table in tables.values()}
    train, (first, *_) = tables["train"], tables["train"].labels
    if len(tables) > 1 and len(firsts) == 1 and not any(first in table.labels[1:] for table in tables.values()):
        _refuse_header(train.file, train.lines[0], [*(column[0] for column in train.texts), first])
    labels, texts = len({*train.labels}), len({*zip(*train.texts, strict=True)})
    if labels > texts:
        raise ValueError(
            f"{train.file}: {labels} labels for {texts} texts, the first, of line {train.lines[0]}, is {first!r:.100}: "
            f"it seems that {_SWAP}"
        )


def _tell_alike(names, train, task):
    """Say which labels may be one class."""
    alike = {}
    for name in names:
        alike.setdefault(" ".join(name.split()).casefold(), []).append(name)
    for same in alike.values():
        if len(same) > 1:
            where = few(f"{name!r:.100}, line {train.lines[train.labels.index(name)]}" for name in same)
            logger.warning("task %s: labels that differ only in case or blanks are classes: %s", task, where)


def _datasets(tables, folder) -> dict[str, TextDataset]:
    known = set(tables["train"].labels)
    if any(map(_is_fraction, known)):
        such = min(filter(_is_fraction, known))
        raise ValueError(
            f"{folder}: labels are numbers such as {such:.100}, but classes are expected: give the classes names that "
            "are not numbers, or predict the numbers with numbers=True"
        )
    _check_columns(tables)
    whole = all(label.lstrip("-").isdecimal() for label in known)
    names = tuple(sorted(known, key=int if whole else str))
    problems = []
    for table in tables.values():
        strange = collections.Counter(label for label in table.labels if label not in known)
        for label, count in strange.items():
            line = table.lines[table.labels.index(label)]
            hint = did_you_mean(label, known)
            lines = count_of(count, "line")
            problems.append(f"{table.file}: {lines} with the label {label!r:.100}, the first is line {line}{hint}")
        if len(table.texts) != len(tables["train"].texts):
            problems.append(f"{table.file} has {len(table.texts)} texts in a line")
    count = len(tables["train"].texts)
    refuse(f"{folder}: the training part has only the labels {few(names)}, and {count} texts in a line", problems)
    _tell_alike(names, tables["train"], folder.name)
    numbers = {name: number for number, name in enumerate(names)}
    return {
        split: TextDataset(
            table.texts[0],
            np.array([numbers[label] for label in table.labels], np.int32),
            names,
            table.texts[1] if len(table.texts) == 2 else None,
        )
        for split, table in tables.items()
    }


def _numbered(tables, folder) -> dict[str, TextDataset]:
    """Return the splits of a task whose labels are numbers."""
    found, problems = {}, []
    for split, table in tables.items():
        values = np.array([_number(label) for label in table.labels])
        if (bad := np.flatnonzero(~np.isfinite(values))).size:
            label, line = table.labels[bad[0]], table.lines[bad[0]]
            problems.append(f"{table.file}: {count_of(len(bad), 'label')} of no number, {label!r:.100} in line {line}")
        if len(table.texts) != len(tables["train"].texts):
            problems.append(f"{table.file} has {len(table.texts)} texts in a line")
        found[split] = table, values.astype(np.float32)
    if not problems and len(set(found["train"][1].tolist())) == 1:
        problems.append(f"{tables['train'].file}: all labels are {tables['train'].labels[0]}")
    refuse(f"{folder}: labels must be numbers", problems)
    second = {split: table.texts[1] if len(table.texts) == 2 else None for split, (table, _) in found.items()}
    return {split: TextDataset(table.texts[0], values, (), second[split]) for split, (table, values) in found.items()}


def _number(label: str) -> float:
    try:
        return float(label)
    except ValueError:
        return math.nan


def _is_fraction(label: str) -> bool:
    number = _number(label)
    return math.isfinite(number) and not number.is_integer()


def _shared(task) -> dict[str, int]:
    """Count the examples of each part that the training part has too, and say so."""
    train, found = set(_examples(task.train)), {}
    for name in ("held_out", "test"):
        found[name] = sum(example in train for example in _examples(getattr(task, name)))
        if found[name]:
            count, verb = count_of(found[name], "example"), "is" if found[name] == 1 else "are"
            logger.warning("task %s: %s of %s %s in its training part too", task.name, count, name, verb)
    return found


def _examples(dataset):
    return zip(dataset.texts, dataset.second or dataset.texts, strict=True)
