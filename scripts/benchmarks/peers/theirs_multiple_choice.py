"""Let lm-evaluation-harness score multiple-choice questions, with its own tasks on files.

    python theirs_multiple_choice.py FOLDER JOB.json

A job has "tasks", each with the "published" task that it is, "questions" and "shots" as data of Hugging Face; a
"model", which is a folder of transformers, or {"gguf": a file, "tokenizer": a folder}; "draw": whether a tiny GPT-2
with random weights is written there first; "max_length", "batch_size", and "first": how many questions. FOLDER gets
theirs.json, with the results of each task, and of each question the log-likelihoods of its answers.
"""

import json
import logging
import pathlib
import sys
import time

import lm_eval
import theirs_draw
import torch
import transformers
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

TASKS = pathlib.Path(lm_eval.__file__).parent / "tasks"
PUBLISHED = {
    "arc": "arc/arc_easy.yaml",
    "mmlu": "mmlu/default/_default_template_yaml",
    "mc1": "truthfulqa/truthfulqa_mc1.yaml",
    "mc2": "truthfulqa/truthfulqa_mc2.yaml",
}


def write_task(folder, name, task):
    """Write a task of lm-evaluation-harness that reads files."""
    files = {"test": str(folder / f"{name}.questions.json")}
    pathlib.Path(files["test"]).write_text(json.dumps(task["questions"]))
    own = {"include": str(TASKS / PUBLISHED[task["published"]]), "task": name, "dataset_path": "json"}
    own |= {"dataset_name": None, "training_split": None, "validation_split": None, "test_split": "test"}
    if task["shots"]:
        files["shots"] = str(folder / f"{name}.shots.json")
        pathlib.Path(files["shots"]).write_text(json.dumps(task["shots"]))
        own |= {"fewshot_split": "shots", "fewshot_config": {"sampler": "first_n"}, "num_fewshot": len(task["shots"])}
    own |= {"dataset_kwargs": {"data_files": files}}
    if "description" in task:
        own["description"] = task["description"]
    if task["published"] == "arc":
        metrics = [{"metric": one, "aggregation": "mean", "higher_is_better": True} for one in METRICS]
        own["metric_list"] = metrics
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))


METRICS = ("acc", "acc_norm", "acc_bytes")


def network(job):
    """Return the model and the tokenizer."""
    model = job["model"]
    if isinstance(model, dict):
        file = pathlib.Path(model["gguf"])
        made = transformers.AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
        return made.eval(), transformers.AutoTokenizer.from_pretrained(model["tokenizer"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    if job["draw"]:
        sizes = {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 4,
            "n_positions": job["max_length"],
            "vocab_size": len(tokenizer),
        }
        config = transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)
        theirs_draw.draw(transformers.GPT2LMHeadModel(config), 0).save_pretrained(model)
    return transformers.GPT2LMHeadModel.from_pretrained(model).eval(), tokenizer


def main(folder, job):
    """Score, and write what was found."""
    for name, task in job["tasks"].items():
        write_task(folder, name, task)
    names = list(job["tasks"])
    if group := job.get("group"):
        metrics = [{"metric": "acc", "weight_by_size": True}]
        (folder / "group.yaml").write_text(
            yaml.safe_dump({"group": "grouped", "task": group, "aggregate_metric_list": metrics})
        )
        names = [name for name in names if name not in group] + ["grouped"]
    model, tokenizer = network(job)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    wrapped = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=job["batch_size"], max_length=job["max_length"])
    start = time.perf_counter()
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = {"log_samples": True, "limit": job.get("first")}
    found = lm_eval.simple_evaluate(wrapped, tasks=names, task_manager=manager, **options)
    seconds = time.perf_counter() - start
    logs = {
        name: [[answer[0] for answer in sample["filtered_resps"]] for sample in samples]
        for name, samples in found["samples"].items()
    }
    results = {name: {key: value for key, value in one.items()} for name, one in found["results"].items()}
    versions = {"lm_eval": lm_eval.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    content = {"results": results, "log_likelihoods": logs, "seconds": seconds, "versions": versions}
    (folder / "theirs.json").write_text(json.dumps(content, default=str))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), json.loads(pathlib.Path(sys.argv[2]).read_text()))
