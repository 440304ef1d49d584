"""Return tiny tasks of texts with a tiny encoder, for the studies of many tasks."""

import json
import pathlib
import shutil

import numpy as np

from soups.plugins import load_plugin

ROOT = pathlib.Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "models" / "recorded" / "models"
ENCODERS = {"linear": "transformers-MiniLM-minilm-l6", "prompts": "transformers-BERT-MLM-bert-base-uncased-mlm"}
OTHERS = ["film", "book", "a", "the", "so", "very", "one", "two"]
#: for each task the words whose presence is its class
MARKS = {"films": ("good", "bad"), "moods": ("yes", "no"), "sizes": ("big", "small", "equal")}
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "was", ".", *OTHERS, *sum(MARKS.values(), ())]


def write_tasks(folder):
    """Write the tasks, and an encoder for each kind of heads."""
    rng = np.random.default_rng(0)
    for task, marks in MARKS.items():
        (folder / task).mkdir()
        for split, count in {"train": 36, "val": 12, "test": 24}.items():
            lines = []
            for number in range(count):
                mark = marks[number % len(marks)]
                words = [*rng.choice(OTHERS, 2 + rng.integers(3)), mark]
                lines.append(f"{' '.join(rng.permutation(words))} {number}\t{mark}\n")
            (folder / task / f"{split}.tsv").write_text("".join(lines))
    for heads, recorded in ENCODERS.items():
        shutil.copytree(RECORDED / recorded, folder / heads)
        (folder / heads / "vocab.txt").write_text("\n".join([*PIECES, ""]))
        (folder / heads / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    return folder


def small_config(name, data_dir, heads="linear", **changes):
    """Return the config of a study as the command line hands it over, small."""
    config = load_plugin(ROOT / "configs" / "text" / f"{name}.py").get_config()
    config.data_dir, config.tasks = str(data_dir), tuple(MARKS)
    config.model.update(arch=None, start=str(data_dir / heads), length=8)
    config.heads = heads
    config.splits.update(most_train=30, most_held_out=9, most_test=20)
    config.probe.update(strengths=(0.1,), max_iterations=5)
    config.finetune.update(steps=4, batch_size=6, learning_rate=1e-2)
    config = json.loads(json.dumps(config.to_dict())) | changes
    return config | ({"only": []} if "only" in config and "only" not in changes else {})
