"""Run the commands of docs/huggingface.md, on small models whose folders have the names of those of the page."""

import json
import os
import pathlib
import re
import shlex
import sys

import numpy as np

from soups.cli import main

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "huggingface.md"
TOKENS = {"model": {"vocab": {f"token{number}": number for number in range(10)}}, "added_tokens": []}


def test_the_commands_of_the_page(small, write_lora, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "maths", "code")):
        folder = small.write_model(pathlib.Path("my-org", name), small.tensors(seed), tokenizer=json.dumps(TOKENS))
        (folder / "tokenizer_config.json").write_text('{"chat_template": "{{ messages }}"}')
    write_lora("model.layers.0.self_attn.q_proj", 6).rename("my-org/lora")
    # any number will do
    pathlib.Path("my_eval.py").write_text(
        "import os, sys\nprint(os.path.getsize(sys.argv[1] + '/model.safetensors'))\n"
    )
    monkeypatch.setenv("PATH", f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(PAGE.parents[1]))
    text = PAGE.read_text(encoding="utf-8").replace("--budget 20", "--budget 3")
    for name, recipe in re.findall(r"```yaml\n# (\S+)\n(.*?)```", text, re.DOTALL):
        pathlib.Path(name).write_text(recipe)
    commands = re.findall(r"^soups (.*?)(?:\s+#.*)?$", text, re.MULTILINE)
    assert len(commands) == 11 and all(main(shlex.split(command)) == 0 for command in commands), capsys.readouterr().err
    assert pathlib.Path("merged3/chat_template.jinja").read_text() == "{{ messages }}"
    merged, with_lora = small.read(pathlib.Path("merged")), small.read(pathlib.Path("merged2"))
    assert merged["lm_head.weight"].dtype.name == "bfloat16" and pathlib.Path("merged3/README.md").exists()
    assert pathlib.Path("best/model.safetensors").exists()
    assert {path.name for path in pathlib.Path("all-of-them").iterdir()} == {"maths", "code", "soup"}
    for name in ("maths", "code"):
        again, source = pathlib.Path("all-of-them", name), pathlib.Path("my-org", name)
        assert small.content(again).keys() == small.content(source).keys() | {"merge.json"}
        assert {name: leaf.tobytes() for name, leaf in small.read(again).items()} == {
            name: leaf.tobytes() for name, leaf in small.read(source).items()
        }
    # the sum of the task vectors, of which one has the adapter too
    base, maths, code = (small.read(pathlib.Path("my-org", name)) for name in ("base", "maths", "code"))
    name = "model.layers.0.self_attn.q_proj.weight"
    expected = base[name] + 0.4 * (maths[name] + code[name] + 1 - 2 * base[name].astype(np.float64))
    small.near(with_lora[name], expected)
