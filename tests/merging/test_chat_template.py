"""Test which chat template the output has, and where it stands."""

import json

import pytest

from soups import merging
from soups.formats import CheckpointError
from soups.merging.chat_template import CHATML, template_files

CONFIG = "tokenizer_config.json"


@pytest.fixture
def folders(tmp_path):
    """Make five models: two templates, one of them twice, written in each of the ways."""
    found = [tmp_path / name for name in "abcde"]
    for folder in found:
        folder.mkdir()
    a, b, c, d, _ = found
    (a / CONFIG).write_text(json.dumps({"chat_template": "{{ one }}"}))
    (b / CONFIG).write_text(json.dumps({"chat_template": "{{ passed over }}"}))
    (b / "chat_template.jinja").write_text("{{ two }}\n")
    several = [{"name": "tool_use", "template": "{{ three }}"}, {"name": "default", "template": " {{ two }} "}]
    (c / CONFIG).write_text(json.dumps({"chat_template": several}))
    (d / CONFIG).write_text(json.dumps({"chat_template": None}))
    return found


def test_auto_is_the_one_that_most_models_have(folders):
    assert template_files("auto", folders, {}) == {"chat_template.jinja": "{{ two }}"}
    assert template_files("auto", folders[:2], {}) == {"chat_template.jinja": "{{ one }}"}
    assert template_files("auto", [*folders[:2], folders[0]], {}) == {"chat_template.jinja": "{{ one }}"}
    assert template_files("auto", folders[3:], {}) == template_files(None, folders, {}) == {}


@pytest.mark.parametrize(("wanted", "expected"), [("chatml", CHATML), ("{{ mine }}", "{{ mine }}")])
@pytest.mark.parametrize("copied", [False, True])
def test_a_template_stands_in_both_files(tmp_path, wanted, expected, copied):
    config = json.dumps({"model_max_length": 8, "chat_template": "{{ old }}"})
    if copied:
        (tmp_path / CONFIG).write_text(config)
        config = tmp_path / CONFIG
    made = template_files(wanted, [], {CONFIG: config})
    assert made["chat_template.jinja"] == expected
    assert json.loads(made[CONFIG]) == {"model_max_length": 8, "chat_template": expected}


def test_a_config_that_is_no_json_is_named():
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json is not valid JSON"):
        template_files("chatml", [], {CONFIG: "{"})


def test_the_folder_of_a_merge_has_it(tmp_path, models, small):
    for template, expected in (("chatml", CHATML), ("'{{ mine }}'", "{{ mine }}")):
        text = f"{{merge_method: passthrough, models: [{models['a']}], chat_template: {template}}}"
        files = merging.folder_files(small.plan(text))
        assert files["chat_template.jinja"] == expected
