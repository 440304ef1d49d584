"""Say where fine-tuning has gone: `soups.train`."""

_NOW = {
    "Training": "Training(loss=soups.train.Classification(train_apply, num_classes))",
    "finetune": "fit",
    "finetune_resumable": "fit(directory=...)",
    "finetune_lanes": "sweep(mesh=...)",
    "run_sweep": "sweep",
    "sweep": "search",
}


def __getattr__(name: str):
    if name.startswith("__"):  # what Python asks every module for
        raise AttributeError(name)
    raise ImportError(f"soups.finetune.{name} is now soups.train.{_NOW.get(name, name)}")
