"""Choose the chat template of the output as a recipe's `chat_template` says."""

import collections
import json
import os
import pathlib
from collections.abc import Iterable, Mapping

from soups.formats.text import parse_json, read_json, read_text

FILE, CONFIG = "chat_template.jinja", "tokenizer_config.json"
CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


def template_files(
    wanted: str | None, folders: Iterable[pathlib.Path], files: Mapping[str, str | pathlib.Path]
) -> dict[str, str]:
    """Return the files of the output's folder that hold its chat template.

    It stands in a file of its own, which newer programs read, and in `tokenizer_config.json`, which older ones do.

    Args:
        wanted: "auto", the one that most of the models have, or the first of equally frequent ones; "chatml"; the text
            of a template; None keeps what the tokenizer has.
        folders: of the models.
        files: of the output so far.

    Raises:
        CheckpointError: a tokenizer_config.json or a template cannot be read, as in `soups.formats.text`.
    """
    template = CHATML if wanted == "chatml" else wanted
    if wanted == "auto":
        found = collections.Counter(filter(None, map(_template, dict.fromkeys(folders))))
        template = found.most_common(1)[0][0] if found else None
    if template is None:
        return {}
    made = {FILE: template}
    if (config := files.get(CONFIG)) is not None:
        known = read_json(config) if isinstance(config, pathlib.Path) else parse_json(config, CONFIG)
        made[CONFIG] = json.dumps(known | {"chat_template": template}, ensure_ascii=False, indent=2)
    return made


def _template(folder):
    """Return the template of a model's folder, stripped; its own file goes first, as in transformers."""
    if os.path.lexists(folder / FILE):
        return read_text(folder / FILE).strip()
    found = read_json(folder / CONFIG).get("chat_template") if os.path.lexists(folder / CONFIG) else None
    if isinstance(found, list):  # of several the one that is called default
        named = [entry for entry in found if isinstance(entry, dict) and entry.get("name") == "default"]
        found = named[0].get("template") if named else None
    return found.strip() if isinstance(found, str) else None
