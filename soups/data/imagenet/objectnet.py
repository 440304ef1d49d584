"""Map ObjectNet's folders to the outputs of an ImageNet classifier, by the four files in its own `mappings` folder.

folder_to_objectnet_label.json     {"alarm_clock": "Alarm clock", …}
objectnet_to_imagenet_1k.json      {"Alarm clock": "labels of ImageNet, separated by '; '", …}, 113 objects of 313
imagenet_to_label_2012_v2          line i (from 0) is the label of ImageNet's 2012 id i
pytorch_to_imagenet_2012_id.json   {"place of the class, sorted by WordNet id": 2012 id, …}
"""

import pathlib

from soups.formats.text import read_json, read_text
from soups.names import refuse

_FILES = (
    "folder_to_objectnet_label.json",
    "objectnet_to_imagenet_1k.json",
    "imagenet_to_label_2012_v2",
    "pytorch_to_imagenet_2012_id.json",
)


def object_groups(mappings, num_classes: int) -> dict[str, tuple[int, ...]]:
    """Return for each folder that is in ImageNet the outputs it stands for, sorted by folder.

    The logit of an object is the maximum over its outputs (Barbu et al., 2019, "ObjectNet"). A FileNotFoundError lists
    mapping files that are not there; a ValueError what in them does not fit.
    """
    missing = [name for name in _FILES if not pathlib.Path(mappings, name).is_file()]
    if missing:
        raise FileNotFoundError(f"{mappings}: ObjectNet's mapping files are missing: {', '.join(missing)}")
    folder_labels, object_labels, lines, ids = (_content(pathlib.Path(mappings, name)) for name in _FILES)
    folders = {label: folder for folder, label in folder_labels.items()}
    places = {number: int(place) if place.isdecimal() else None for place, number in ids.items()}
    outputs = {line.strip(): places.get(number) for number, line in enumerate(lines)}
    problems, groups = [], {}
    for label, value in object_labels.items():
        names = value.split("; ")
        problems += [f"object {label!r} has no folder"] * (label not in folders)
        problems += [
            f"object {label!r}: {name!r} is not one of the {num_classes} classes"
            for name in names
            if outputs.get(name) not in range(num_classes)
        ]
        groups[folders.get(label)] = tuple(outputs.get(name) for name in names)
    refuse(f"{mappings}: the files do not fit together", problems)
    return dict(sorted(groups.items()))


def _content(path):
    if path.suffix != ".json":
        return read_text(path).splitlines()
    content = read_json(path)
    kind = int if path.name == _FILES[3] else str
    if wrong := [key for key, value in content.items() if not isinstance(value, kind)]:
        raise ValueError(f"{path}: the value of {wrong[0]!r} must be {'a number' if kind is int else 'text'}")
    return content
