"""Find models of the Hugging Face hub in its local cache: org/name and org/name@revision; nothing is downloaded.

models--ORG--NAME/refs/REVISION                 the commit that a branch, a tag or a pull request stands for
models--ORG--NAME/snapshots/COMMIT/FILE         a link to a blob, or the file itself
models--ORG--NAME/blobs/DIGEST                  the file, or a link to one that repositories share
models--ORG--NAME/trees/COMMIT.json             which files the commit has, downloaded or not
blobs/XX/DIGEST                                 the files that repositories share
"""

import os
import pathlib
import re

from soups.names import few

_PART = r"\w([\w.-]{0,94}\w)?"  # as the hub has it, which also forbids what `_id` looks for
_ID = re.compile(rf"(?P<name>({_PART}/)?{_PART})(@(?P<revision>[\w.+-]+(/[\w.+-]+)*))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SNAPSHOT = re.compile(
    r"(?P<model>.*/models--(?P<name>[^/]+))/snapshots/(?P<commit>[0-9a-f]{40})(?P<inner>/.*)?", re.DOTALL
)
_BLOB = re.compile(r".*/(models--[^/]+/blobs/[0-9a-f]{40,64}|blobs/([0-9a-f]{2})/\2[0-9a-f]{62})", re.DOTALL)


def cached_model(reference: str) -> str:
    """Return the folder of a model in the cache of huggingface_hub; what is no id, or is not there, as it is.

    Without a revision it is "main". A local path goes before an id of the same name, with or without "@", unless the
    revision is a whole commit.
    """
    found = _id(reference)
    if not found or _is_local(reference, found):
        return reference
    folder = _snapshot(_model(found["name"]), found["revision"])
    return reference if folder is None else str(folder)


def local_note(reference: str) -> list[str]:
    """Return the note that a local path was taken, and not the model of the hub of this name; none without both."""
    found = _id(reference)
    if not found or not _is_local(reference, found):
        return []
    folder = _snapshot(_model(found["name"]), found["revision"])
    if folder is None:
        return []
    return [f"{reference} is the local path; the model of the hub of this name is {found['name']}@{folder.name}"]


def not_cached(reference: str) -> str:
    """Return "; ..." that says how to download a model of the hub; nothing if it is no id with an owner."""
    found = _id(reference)
    if not found or "/" not in found["name"]:
        return ""
    there = _revisions(_model(found["name"]))
    what = f"of the model {found['name']} has only {few(there)}" if there else f"has no model {found['name']}"
    return f"; the Hugging Face cache {cache()} {what}: to download it, {_command(found['name'], found['revision'])}"


def pinned(path: str | os.PathLike) -> str | None:
    """Return the id with its commit, org/name@COMMIT, of a snapshot in the cache; None of any other folder."""
    found = _of_snapshot(path)
    if not found or found["inner"] or pathlib.Path(found["model"]).parent != pathlib.Path(os.path.abspath(cache())):
        return None
    return f"{_name(found)}@{found['commit']}"


def model_id(path: str | os.PathLike) -> str | None:
    """Return the id of the model, org/name, that a snapshot is of; None of any other folder."""
    found = _of_snapshot(path)
    return _name(found) if found and not found["inner"] else None


def how_to_complete(path: str | os.PathLike) -> str:
    """Return "; ..." with the command that downloads what a snapshot lacks; nothing of what lies in no snapshot."""
    found = _of_snapshot(path)
    if not found:
        return ""
    return f"; this snapshot is incomplete: to download the rest, {_command(_name(found), found['commit'])}"


def listing(folder: str | os.PathLike) -> pathlib.Path | None:
    """Return the file that lists what a snapshot should hold, where huggingface_hub has written one."""
    found = _of_snapshot(folder)
    path = pathlib.Path(found["model"]) / "trees" / f"{found['commit']}.json" if found else None
    return path if path and path.is_file() else None


def is_blob(path: str | os.PathLike) -> bool:
    """Say whether a path is that of a blob of the cache, to which the files of its snapshots are linked."""
    return _BLOB.fullmatch(pathlib.PurePath(str(path)).as_posix()) is not None


def cache() -> pathlib.Path:
    """Return where huggingface_hub keeps what it downloaded."""
    for name, inner in (("HF_HUB_CACHE", ""), ("HUGGINGFACE_HUB_CACHE", ""), ("HF_HOME", "hub")):
        if value := os.environ.get(name):
            return pathlib.Path(os.path.expandvars(value)).expanduser() / inner
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(home).expanduser() / "huggingface" / "hub"


def _of_snapshot(path):
    return _SNAPSHOT.fullmatch(pathlib.Path(os.path.abspath(path)).as_posix())


def _id(reference):
    found = _ID.fullmatch(reference)
    if not found or re.search(r"--|\.\.|\.git$", found["name"]):
        return None
    return None if {".", ".."} & set((found["revision"] or "").split("/")) else found


def _is_local(reference, found):
    by_commit = _COMMIT.fullmatch(found["revision"] or "")  # which is no tree of a local checkpoint
    return os.path.lexists(reference) or (not by_commit and os.path.lexists(found["name"]))


def _name(snapshot):
    return snapshot["name"].replace("--", "/", 1)


def _model(name):
    return cache() / f"models--{name.replace('/', '--')}"


def _snapshot(model, revision):
    """Return the folder of a revision of a model, or None."""
    commit = revision or "main"
    if not _COMMIT.fullmatch(commit):
        try:
            commit = (model / "refs" / commit).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
    folder = model / "snapshots" / commit
    return folder if _COMMIT.fullmatch(commit) and folder.is_dir() else None


def _revisions(model):
    """List the revisions of a model that are there: branches and tags, or where there are none commits."""
    refs = [file.relative_to(model / "refs").as_posix() for file in sorted((model / "refs").rglob("*"))]
    commits = sorted(folder.name for folder in (model / "snapshots").glob("*"))
    return [name for name in refs if _snapshot(model, name)] or list(filter(_COMMIT.fullmatch, commits))


def _command(name, revision):
    return f"hf download {name}{f' --revision {revision}' if revision else ''}"
