"""Know where ImageNet and its shifts lie: in the folders they are released in, or prepared by TFDS.

Folders below the data directory, as in the file datasets.md of github.com/mlfoundations/model-soups:

    imagenet/train                              class folders named by WordNet ids
    imagenet/val_in_folder, or imagenet/val     the same classes
    imagenetv2-matched-frequency-format-val     class folders 0 … 999: the places of the classes in ImageNet
    sketch                                      WordNet ids
    imagenet-r, imagenet-a                      200 of the WordNet ids
    objectnet-1.0/images, …/mappings            objects, and the four files that say which classes they are
    imagenet_98_idxs.npy                        which training images the published soups were chosen on; optional

A set without its folder may lie in the same directory as TFDS prepares it (ArrayRecord), ObjectNet excepted.
"""

import dataclasses
import os
import pathlib

from soups.files import local_path
from soups.formats.text import read_json
from soups.names import check_name

SETS = ("held_out", "imagenet", "imagenet_v2", "imagenet_sketch", "imagenet_r", "objectnet", "imagenet_a")
INDEX_FILE = "imagenet_98_idxs.npy"
MAPPINGS = "objectnet-1.0/mappings"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Say where a set may lie: in the first of the folders that exists, or as (name, split) of TFDS."""

    folders: tuple[str, ...]
    tfds: tuple[str, str] | None = None


LAYOUTS = {
    "train": Layout(("imagenet/train",), ("imagenet2012", "train")),
    "imagenet": Layout(("imagenet/val_in_folder", "imagenet/val"), ("imagenet2012", "validation")),
    "imagenet_v2": Layout(("imagenetv2-matched-frequency-format-val",), ("imagenet_v2/matched-frequency", "test")),
    "imagenet_sketch": Layout(("sketch",), ("imagenet_sketch", "test")),
    "imagenet_r": Layout(("imagenet-r",), ("imagenet_r", "test")),
    "objectnet": Layout(("objectnet-1.0/images",)),
    "imagenet_a": Layout(("imagenet-a",), ("imagenet_a", "test")),
}


def locate(data_dir, sets) -> dict[str, pathlib.Path | None]:
    """Return the folder of each set, None where it is prepared by TFDS; "held_out" lies in the training images.

    A ValueError for a set that does not exist, or none, and for a URL; a FileNotFoundError lists all sets that are not
    there, with the folder or the TFDS set expected.
    """
    names = [check_name(name, {*SETS, "train"}, "ImageNet set") for name in sets]
    if not names:
        raise ValueError(f"no ImageNet sets were asked for: choose from {', '.join(SETS)}")
    data_dir = local_path(data_dir)
    missing = [name for name in names if not is_present(data_dir, name)]
    if missing:
        lines = "\n".join(f"  {name}: {_expected(data_dir, name)}" for name in missing)
        raise FileNotFoundError(f"ImageNet sets are missing in {data_dir}:\n{lines}")
    return {name: folder(data_dir, name) for name in names}


def is_present(data_dir, name: str) -> bool:
    """Say whether a set lies in its folder or is prepared by TFDS."""
    return folder(data_dir, name) is not None or _is_prepared(data_dir, layout(name).tfds)


def folder(data_dir, name: str) -> pathlib.Path | None:
    """Return the folder of a set, None if it has none."""
    paths = (pathlib.Path(data_dir, path) for path in layout(name).folders)
    return next((path for path in paths if path.is_dir()), None)


def layout(name: str) -> Layout:
    """Return the layout of a set."""
    return LAYOUTS["train" if name == "held_out" else name]


def _is_prepared(data_dir, tfds):
    if tfds is None:
        return False
    name, split = tfds
    # TFDS keeps a set in NAME[/CONFIG]/VERSION; of ImageNet it prepares those splits whose archives it finds
    infos = (read_json(path) for path in pathlib.Path(data_dir, name).glob("*/dataset_info.json"))
    entries = (entry for info in infos for entry in info.get("splits") or ())
    return any(isinstance(entry, dict) and entry.get("name") == split for entry in entries)


def _expected(data_dir, name):
    folders = " or ".join(f"{path}{os.sep}" for path in layout(name).folders)
    if name == "objectnet":
        return f"expected in {folders}, with {MAPPINGS}{os.sep} beside it (both are in objectnet-1.0.zip)"
    tfds_name, _ = layout(name).tfds
    command = f"tfds build {tfds_name} --file_format=array_record --data_dir={data_dir}"
    return f"expected in {folders}, or prepared by `{command}`"
