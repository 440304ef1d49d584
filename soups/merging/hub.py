"""Find models of the Hugging Face hub in its local cache: org/name and org/name@revision; nothing is downloaded."""

import os
import pathlib
import re

_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?)(@(?P<revision>[\w.-]+(/[\w.-]+)*))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def cached_model(reference: str) -> str:
    """Return the folder of a model in the cache of huggingface_hub; what is no id, or is not there, as it is.

    A local path goes before an id of the same name, with or without "@". Without a revision it is "main".
    """
    found = _ID.fullmatch(reference)
    if not found or os.path.exists(reference) or os.path.exists(found["name"]):
        return reference
    folder = cache() / f"models--{found['name'].replace('/', '--')}"
    commit = found["revision"] or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (folder / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return reference
    snapshot = folder / "snapshots" / commit
    return str(snapshot) if _COMMIT.fullmatch(commit) and snapshot.is_dir() else reference


def how_to_download(reference: str) -> str:
    """Return "; ..." with the command that would bring a model into the cache, or nothing if it is no id of the hub."""
    found = _ID.fullmatch(reference)
    if not found or "/" not in found["name"]:
        return ""
    revision = f" --revision {found['revision']}" if found["revision"] else ""
    command = f"hf download {found['name']}{revision}"
    return f", nor is it in {cache()}; a model of the Hugging Face hub comes there by: {command}"


def cache() -> pathlib.Path:
    """Return where huggingface_hub keeps what it downloaded."""
    for name, inner in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(name):
            return pathlib.Path(value).expanduser() / inner
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "huggingface" / "hub"
