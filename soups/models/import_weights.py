"""Import published weights of a named architecture, without torch and without reading what is not used yet."""

import pathlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from soups.files import PathLike
from soups.formats.hub import cached_model, model_id, not_cached
from soups.formats.tensors import nested
from soups.models.architectures import Architecture, architecture
from soups.models.tables.configs import config_problems
from soups.models.tables.layouts import LAYOUTS
from soups.models.tables.parts import Table
from soups.models.tables.reading import convert, find_layout, mismatches, open_tensors
from soups.tree import Tree


def import_weights(path: PathLike, arch: str | Architecture, *, num_classes: int | None = None) -> Tree:
    """Read the weights of a classifier from a published file, as nested dicts of float32 arrays.

    `path`: a torch file (.pt, .pth, .bin; also a TorchScript archive, as OpenAI's CLIP is) or .safetensors, or a folder
    of Hugging Face or open_clip, with the names of the released model soups, OpenAI's CLIP, open_clip, Hugging Face's
    CLIP, ViT, BERT or RoBERTa, timm's ViT or torchvision's ResNet, also by its id on the hub, org/name, from the local
    cache; or an .npz file of AugReg or big_vision. `arch`: one of `soups.models.architectures.ARCHITECTURES`, or an
    `Architecture` of your own. What it does without is left out, such as CLIP's text tower or the heads that an encoder
    was pre-trained with. `num_classes`: a file without a head gets one of zeros; None leaves it without.

    The arrays are read-only views of the mapped file, transposed where the names' owner keeps matrices the other way,
    so that nothing is read or copied before its use; leave the file as it is while they are used. Only what is not
    float32 is copied, and the class token, to which its position embedding is added.

    A ValueError for a file that is damaged, hostile or has another project's names; it lists tensors that are missing,
    extra or of another shape, a head of other classes, and where a folder's configuration computes something else.
    """
    wanted = architecture(arch)
    tensors, table, classes = _matched(path, wanted, num_classes)
    leaves = convert(tensors, table)
    if classes is None and num_classes is not None:
        leaves |= {f"{wanted.head}/kernel": np.zeros((wanted.feature_dim, num_classes), np.float32)}
        leaves |= {f"{wanted.head}/bias": np.zeros(num_classes, np.float32)}
    return nested(leaves)


def check_weights(path: PathLike, arch: str | Architecture, *, num_classes: int | None = None) -> None:
    """Raise what `import_weights` would, without reading a tensor."""
    _matched(path, architecture(arch), num_classes)


def imported_members(paths: Iterable, arch: str | Architecture, num_classes: int | None = None) -> Mapping[str, Tree]:
    """Return the weights of published files as members by name, "used in place": each is imported when it is asked for.

    A member is named as its file, without the suffix, or as its folder; org/name of the hub is "name". The headers of
    all files are read and checked at once.

    Raises:
        FileNotFoundError: files that do not exist; all are listed.
        ValueError: no files; two files of the same name; files that `import_weights` refuses, all of them listed; heads
            with different numbers of classes.
    """
    named, wanted, problems, classes = _by_name(paths), architecture(arch), [], {}
    for name, path in named.items():
        try:
            classes[name] = _matched(path, wanted, num_classes)[2]
        except ValueError as error:
            problems.append(str(error))
    if not problems and num_classes is None and len(set(classes.values())) > 1:
        problems = ["heads of different numbers of classes:"]
        problems += [f"  {name}: {'no head' if count is None else count}" for name, count in classes.items()]
    if problems:
        raise ValueError("\n".join(problems))
    return _Imported(named, lambda path: import_weights(path, wanted, num_classes=num_classes))


class _Imported(Mapping):
    def __init__(self, paths, read):
        self._paths, self._read = paths, read

    def __getitem__(self, name: str) -> Tree:
        return self._read(self._paths[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)


def _by_name(paths):
    paths = [pathlib.Path(cached_model(str(path))) for path in paths]
    if missing := [f"{path}{not_cached(str(path))}" for path in paths if not path.exists()]:
        raise FileNotFoundError(f"no such files: {', '.join(missing)}")
    if not paths:
        raise ValueError("no files of members were given: at least one is needed")
    named = {}
    for path in paths:
        name = (model_id(path) or path.name).rpartition("/")[2] if path.is_dir() else path.stem
        if name in named:
            raise ValueError(f"two files would be member {name!r}: {named[name]} and {path}")
        named[name] = path
    return named


def _matched(path, wanted, num_classes) -> tuple[Mapping[str, np.ndarray], Table, int | None]:
    """Return the tensors of a file, their table, and how many classes its head has, if it has one."""
    if num_classes is not None and num_classes < 2:
        raise ValueError(f"a head needs at least two classes, not {num_classes}")
    if num_classes is not None and (wanted.family == "t5" or getattr(wanted.features, "mlm", False)):
        raise ValueError(f"{wanted.name} gives logits of its vocabulary, and has no head: leave out num_classes")
    path = cached_model(str(path))
    tensors = open_tensors(path)
    layout = find_layout(tensors, LAYOUTS, wanted, path)
    table = layout.table(wanted)
    classes = _classes(tensors, layout, wanted)
    if classes is not None:
        table |= layout.head(wanted, classes)
    problems = mismatches(tensors, table, layout.left_out) + config_problems(path, wanted)
    if None not in (classes, num_classes) and classes != num_classes:
        problems.append(f"  ~ its head is of {classes} classes, not {num_classes}")
    if problems:
        raise ValueError(f"{path} does not hold the weights of {wanted.name}:\n" + "\n".join(problems))
    return tensors, table, classes


def _classes(tensors, layout, wanted):
    for name, part in layout.head(wanted, 1).items() if layout.head else ():
        if name in tensors:
            # where a head for one class has its 1
            axis = part.shape.index(1)
            return tensors[name].shape[axis] if tensors[name].ndim == len(part.shape) else 1
    return None
