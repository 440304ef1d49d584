"""Say where fine-tuning has gone: `soups.train`."""


def __getattr__(name: str):
    if name.startswith("__"):  # what Python asks every module for
        raise AttributeError(name)
    raise ImportError(f"soups.finetune is now soups.train: import {name} from there")
