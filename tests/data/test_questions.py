"""Read questions from files written as ARC, MMLU and TruthfulQA are published, and refuse what is broken."""

import json

import pytest

from soups.data import Question, read_arc, read_mmlu, read_truthful_qa
from soups.data.questions import PREAMBLE


def test_arc_is_the_same_from_both_forms(tmp_path):
    table, lines = tmp_path / "arc.csv", tmp_path / "arc.jsonl"
    table.write_text('"Which, of these?",moss,"a stone, hot",C3PO,B\nWhat?,one,two,3\n'.replace("two,3", "two,2"))
    choices = [["moss", "a stone, hot", "C3PO"], ["one", "two"]]
    items = []
    for stem, texts, labels, right in zip(["Which, of these?", "What?"], choices, ["ABC", "12"], "B2", strict=True):
        named = [{"text": text, "label": label} for text, label in zip(texts, labels, strict=True)]
        items.append({"id": "x", "question": {"stem": stem, "choices": named}, "answerKey": right})
    lines.write_text("\n".join(map(json.dumps, items)))
    first = Question("Question: Which, of these?\nAnswer:", ("moss", "a stone, hot", "C3PO"), (1,))
    second = Question("Question: What?\nAnswer:", ("one", "two"), (1,))
    assert read_arc(table) == read_arc(lines) == [first, second]
    assert first.answered == "Question: Which, of these?\nAnswer: a stone, hot"
    shots = read_arc(table, [second])
    assert shots[0].context == f"Question: What?\nAnswer: two\n\n{first.context}" and shots[0].choices == first.choices


def test_lines_without_their_right_answer_are_left_out_and_counted(tmp_path, caplog):
    path = tmp_path / "arc.csv"
    path.write_text("Lost?,,,,,2\n\nWhat?,one,two,,,2\nFour?,a,b,c,d,E\n")
    assert read_arc(path) == [Question("Question: What?\nAnswer:", ("one", "two"), (1,))]
    assert "arc.csv: left out for want of the right answer: 2 lines, the first is number 1" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "What?,A\n", r"a\.csv, line 1: a line is a question, two answers at least, and a letter"),
        ("a.csv", "What?,a,b,B\nWhat?,a,b,CD\n", r"line 2: nothing says which of its 2 answers is right"),
        ("a.csv", "What?,a,b,\n", r"line 1: nothing says which"),
        ("a.csv", "What?,a, ,b,A\n", r"line 1: answer 2 is empty"),
        ("a.csv", "What?,a,b,,?\n", r"line 1: nothing says which of its 2 answers is right"),
        ("a.jsonl", "{}\n", r"line 1: this is not a question of ARC"),
        ("a.jsonl", "no\n", r"line 1: this is not a question of ARC"),
        ("a.jsonl", '{"question": {"stem": "?", "choices": []}, "answerKey": "A"}', r"line 1: this is not a question"),
    ],
)
def test_broken_lines_of_arc_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_arc(tmp_path / name)


@pytest.fixture
def mmlu(tmp_path):
    """Return a folder as MMLU's with two subjects."""
    for split, count in {"dev": 2, "test": 1}.items():
        (tmp_path / split).mkdir()
        for subject in ("us_history", "anatomy"):
            lines = [f"{subject} {number} ? ,p,q,r,s,{'BD'[number]}" for number in range(count)]
            (tmp_path / split / f"{subject}_{split}.csv").write_text("\n".join(lines))
    return tmp_path


def test_mmlu_has_letters_shots_and_subjects(mmlu):
    found = read_mmlu(mmlu, shots=1)
    header = "The following are multiple choice questions (with answers) about us history.\n\n"
    asked = "us_history 0 ?\nA. p\nB. q\nC. r\nD. s\nAnswer:"
    assert [question.group for question in found] == ["anatomy", "us_history"]
    assert found[1] == Question(f"{header}{asked} B\n\n{asked}", ("A", "B", "C", "D"), (1,), "us_history")
    assert read_mmlu(mmlu, subjects=["us_history"])[0].context == header + asked
    assert len(read_mmlu(mmlu, "dev")) == 4


def test_other_folders_of_mmlu_are_errors(mmlu):
    with pytest.raises(ValueError, match="anatomy of MMLU has 2 questions in dev, fewer than shots=3"):
        read_mmlu(mmlu, shots=3)
    with pytest.raises(ValueError, match="unknown split of MMLU 'train'; there are: dev, test, val"):
        read_mmlu(mmlu, "train")
    with pytest.raises(FileNotFoundError, match="val"):
        read_mmlu(mmlu, "val")
    with pytest.raises(FileNotFoundError, match="biology_test"):
        read_mmlu(mmlu, subjects=["biology"])
    (mmlu / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"has no files SUBJECT_val\.csv"):
        read_mmlu(mmlu, "val")
    (mmlu / "test" / "anatomy_test.csv").write_text("What?,a,b,c,A\n")
    with pytest.raises(ValueError, match=r"anatomy_test\.csv, line 1: a question of MMLU has 4 answers, not 3"):
        read_mmlu(mmlu)


TABLE = "\ufeffType,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source\n"


def test_truthful_qa_from_its_table(tmp_path):
    path = tmp_path / "TruthfulQA.csv"
    path.write_text(TABLE + 'a,b,Why?,"Best, one",One; Best one.;,"Wrong; Not, so; ",x\n', encoding="utf-8")
    (found,) = read_truthful_qa(path)
    assert found == Question(f"{PREAMBLE}Q: Why?\nA:", ("Best, one.", "Wrong.", "Not, so."), (0,))
    (found,) = read_truthful_qa(path, "mc2")
    assert (found.choices, found.right) == (("One.", "Best one.", "Wrong.", "Not, so."), (0, 1))
    assert PREAMBLE.count("Q: ") == 6 and PREAMBLE.endswith("Barcelona, Spain.\n\n")


def test_truthful_qa_from_the_published_lists(tmp_path):
    path = tmp_path / "mc_task.json"
    item = {"question": "Why?", "mc1_targets": {"x.": 0, "y.": 1}, "mc2_targets": {"a.": 1, "b.": 0, "c.": 1}}
    path.write_text(json.dumps([item]))
    assert read_truthful_qa(path)[0].choices == ("y.", "x.")
    (found,) = read_truthful_qa(path, "mc2")
    assert (found.choices, found.right) == (("a.", "c.", "b."), (0, 1))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "Question,Best Answer\n", "it lacks Correct Answers, Incorrect Answers"),
        ("a.csv", TABLE + "a,b,Why?,Best,Best,;,x\n", "number 1: a question needs right and wrong answers"),
        ("a.json", "{}", "number 1: there is no question with mc1_targets"),
        ("a.json", '[{"question": "?", "mc1_targets": {"a": 1}}]', "number 1: a question needs right and wrong"),
    ],
)
def test_broken_files_of_truthful_qa_are_errors(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_truthful_qa(tmp_path / name)
    with pytest.raises(ValueError, match="unknown targets of TruthfulQA 'mc3'"):
        read_truthful_qa(tmp_path / name, "mc3")
