"""Fill in what a Hugging Face folder needs beside its tensors: config, tokenizer, recipe, model card."""

import json
import pathlib

from soups.merging.chat_template import template_files
from soups.merging.lora import split_reference
from soups.merging.plan import Plan

# copied from the base, or from the first model, where they are there
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
)
_NUM_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_DTYPE = ("torch_dtype", "dtype")


def folder_files(plan: Plan) -> dict[str, bytes | str]:
    """Give the files of the output's folder by name, made from the recipe and from the base's own files.

    Raises:
        ValueError: a config that is not JSON.
    """
    folders = {model: _folder(checkpoint) for model, checkpoint in plan.checkpoints.items()}
    first = folders[plan.job.models[0]]
    files: dict[str, bytes | str] = dict(_copied(folders[plan.tokenizer.source] if plan.tokenizer else first))
    files |= plan.tokenizer.files if plan.tokenizer else {}
    files |= template_files(plan.job.chat_template, [folders[model] for model in plan.job.models], files)
    if (config := first / "config.json").is_file():
        files["config.json"] = json.dumps(_patched(_read_config(config), plan), indent=2) + "\n"
    files["mergekit_config.yml" if plan.job.vocabulary == "mergekit" else "recipe.yml"] = plan.job.text
    files["README.md"] = model_card(plan).encode("utf-8", "backslashreplace")  # names of files may be of other bytes
    return files


def model_card(plan: Plan) -> str:
    """Write the card of a merged model: what it was made from, how, and the recipe word for word."""
    job, method = plan.job, plan.job.definition
    names = ["+".join(pathlib.Path(part).name for part in split_reference(model) if part) for model in job.models]
    members = "\n".join(
        f"* {name}" + (" (base)" if job.base == model else "") for name, model in zip(names, job.models, strict=True)
    )
    base_models = "\n".join(f"- {name}" for name in names)
    summary = f": {method.summary}" if method.summary else ""
    paper = f" ({method.paper})" if method.paper else ""
    return f"""---
base_model:
{base_models}
library_name: transformers
tags:
- merge
- soups
---

# A merge of {len(names)} models

Made with soups, method `{job.method}` ({job.vocabulary} semantics){summary}{paper}.

## Models

{members}

## Recipe

```yaml
{job.text.rstrip()}
```
"""


def _folder(checkpoint):
    path = pathlib.Path(checkpoint.path)
    return path if path.is_dir() else path.parent


def _copied(folder):
    return {name: (folder / name).read_bytes() for name in COPIED if (folder / name).is_file()}


def _read_config(path):
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not a JSON object")
    return config


def _patched(config, plan):
    layers = sum(
        part.sources[0].layers[1] - part.sources[0].layers[0] for part in plan.job.slices if part.sources[0].layers
    )
    dtypes = {str(output.dtype) for output in plan.outputs if output.recipe is not None}
    rows = plan.tokenizer.rows if plan.tokenizer else 0
    patched = dict(config)
    for name in config:
        if name == "vocab_size" and rows:
            patched[name] = rows
        if name == "text_config" and rows and isinstance(config[name], dict) and "vocab_size" in config[name]:
            patched[name] = config[name] | {"vocab_size": rows}
        if name in _NUM_LAYERS and layers:
            patched[name] = layers
        if name in _DTYPE and len(dtypes) == 1:
            patched[name] = next(iter(dtypes))
    return patched
