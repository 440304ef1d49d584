"""Make a miniature of ImageNet, of its shifts and of a pool of fine-tuned CLIPs: real files in the released formats.

Twenty classes are ten handwritten digits before two places; `layouts` in the folder beside this file says what each set
has, `pictures` how it is drawn, `members` how the networks are trained. Needs no network and no download.
"""

import contextlib
import fcntl
import os
import pathlib
import shutil
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parent))  # for a test or a script that loads this file by its path

from miniature import layouts


def make_miniature(directory, seed: int = 0, scale: int = 1) -> pathlib.Path:
    """Write DIR/data, DIR/models and DIR/clip, and give DIR, which is there when it is complete.

    data: the sets as released, JPEG (ObjectNet PNG); 30 · scale training images per class, 8 · scale of them held out
    by imagenet_98_idxs.npy. models: model_0.pt (a linear probe) to model_11.pt (fine-tuned from it; 5 is 4 again) and
    hparam_info.json, as published. clip: clip-vit-mini.pt in OpenAI's names, its vocabulary and classes. One seed gives
    the same files (weights: on the same hardware).

    Raises:
        FileExistsError: DIR exists.
        ValueError: a scale that is not 1 to 4.
    """
    from miniature import members  # it imports JAX, which the images do without

    with _appearing(directory) as folder:
        drawer = _write_data(folder, seed, scale)
        for name in ("clip", "models"):
            (folder / name).mkdir()
        start, text = members.write_clip(folder / "clip", drawer, seed)
        members.write_members(folder / "models", folder / "data", start, text, seed)
    return pathlib.Path(directory)


def make_data(directory, seed: int = 0, scale: int = 1) -> pathlib.Path:
    """Write DIR/data alone, as `make_miniature` does, with the same errors."""
    with _appearing(directory) as folder:
        _write_data(folder, seed, scale)
    return pathlib.Path(directory)


def shared_miniature(tmp_path_factory) -> pathlib.Path:
    """Return the miniature that all processes of one run of the tests share; the first that asks makes it."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    with open(folder / "miniature.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder / "miniature" if (folder / "miniature").exists() else make_miniature(folder / "miniature")


def _write_data(folder, seed, scale):
    drawer = layouts.Drawer(seed, scale)
    layouts.write_sets(folder / "data", drawer)
    return drawer


@contextlib.contextmanager
def _appearing(directory):
    """Yield a folder that gets its name when all is in it."""
    directory = pathlib.Path(directory)
    if directory.exists():
        raise FileExistsError(f"{directory} exists already: give the miniature a new name, or remove it")
    fresh = directory.with_name(f"{directory.name}.unfinished")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    yield fresh
    fresh.rename(directory)
