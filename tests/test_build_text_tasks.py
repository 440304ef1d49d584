"""Build the tasks of texts from packages as small as they can be."""

import hashlib
import io
import json
import tarfile

import pytest

from soups.data import load_text_task


def packed(**files):
    """Return a packed archive of files by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def build(script, tmp_path, monkeypatch):
    """Return the script, and a folder with packages whose digests it knows."""
    build = script("build_text_tasks")
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"]
    rated = [(f"{n}\t{2 if n % 2 else -1}\tsnippet &amp; {n} {{}} caf\xe9").encode("latin-1") for n in range(20)]
    rated += [f"{n}\t{2 if n % 2 else -1}\t{{}} x{n} {' '.join(words[n % 5 :])} y{n}".encode() for n in range(40)]
    rated += ["21\t0.1\tneither \xe9".encode(), b"22\t1\t ", b"no line", rated[0]]
    texts = {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": b"\n".join(rated).replace(b"{}", name.encode())
        for name in build.SNIPPETS.values()
    }
    inner = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    entries = [{"text": f"sentence\t{n}", "class": n % 2} for n in range(10)] + [None, {"text": None, "class": 1}]
    fixtures = {f"package/test/fixtures/{name}.json": json.dumps(entries).encode() for name in build.SENTENCES.values()}
    packages = {build.VADER[0]: packed(**{inner: packed(**texts)}), build.SENTIMENT[0]: packed(**fixtures)}
    for name, content in packages.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in packages.items()}
    monkeypatch.setattr(build, "COMMANDS", {(name, digests[name]): None for name, _ in build.COMMANDS})
    return build, tmp_path


def test_tasks_are_built_and_read(build, capsys):
    script, folder = build
    assert script.main([str(folder / "texts"), "--packages", str(folder)]) == 0
    names = ["tweets", "amazon", "film", "news", "source", "phones", "imdb", "yelp"]
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [*names, *script.FORMS]
    tasks = {name: load_text_task(folder / "texts" / name) for name in names}
    assert tasks["source"].class_names == ("amazon", "film", "news", "tweets")
    film = tasks["film"]
    assert film.class_names == ("negative", "positive") and len(film.train) + len(film.held_out) + len(film.test) == 60
    assert "snippet & 3 movieReviewSnippets café" in {*film.train.texts, *film.held_out.texts, *film.test.texts}
    assert all(task.facts["shared"] == {"held_out": 0, "test": 0} for task in tasks.values())
    assert sum(map(len, (tasks["imdb"].train, tasks["imdb"].test))) == 8
    before = {path: path.read_bytes() for path in (folder / "texts").rglob("*.tsv")}
    script.main([str(folder / "texts"), "--packages", str(folder)])
    assert {path: path.read_bytes() for path in before} == before


def test_packages_that_are_not_as_they_were_are_errors(build, capsys):
    script, folder = build
    (folder / script.SENTIMENT[0]).write_bytes(b"another")
    assert script.main([str(folder / "texts"), "--packages", str(folder)]) == 2
    assert "sentiment-5.0.2.tgz has the SHA-256" in capsys.readouterr().err
    (folder / script.SENTIMENT[0]).unlink()
    assert script.main([str(folder / "texts"), "--packages", str(folder)]) == 2
    assert "sentiment-5.0.2.tgz" in capsys.readouterr().err
    with pytest.raises(ValueError, match="the package has no file absent"):
        script.file_of(packed(there=b"x"), "absent")


def test_labels_of_form_are_those_of_the_words(build, capsys):
    script, _ = build
    names = [f"{first}{second}" for first in "abcdefghijkl" for second in "abcdefghijkl"]
    texts = [" ".join(names[at : at + 8 + at % 9]) for at in range(100)]
    tasks, kept = script.forms([*texts, "too short"]), set(texts)
    assert all(len(found) > 40 and len(set(found.values())) > 1 for found in tasks.values())
    for text, label in tasks["order"].items():
        words = text.split()
        assert (text in kept) is (label == "kept") and "too" not in words
        assert any(" ".join(words[at:] + words[:at]) in kept for at in range(len(words)))
    for text, label in tasks["reversed"].items():
        assert " ".join(text.split()[::-1] if label == "reversed" else text.split()) in kept
    for text, label in tasks["length"].items():
        least, most = map(int, label.split("-"))
        assert least <= len(text.split()) <= most
    for task in ("contains", "phrase"):
        for pair, label in tasks[task].items():
            part, whole = pair.split("\t")
            assert (f" {part} " in f" {whole} ") is (label == "yes")
    for pair, label in tasks["longer"].items():
        first, second = (len(text.split()) for text in pair.split("\t"))
        assert (first > second) is (label == "first") and first != second
