"""Write the logits of a network for all images in a folder.

soups predict --pool POOL --member greedy_soup --images DIR --out OUT.npz
soups predict --weights FILE --arch clip-vit-b32 --images DIR --out OUT.npz

Images may lie in subfolders. They are taken in the order of their names,
resized (bicubic) so that the shorter side fits the network, and cropped at the
centre. OUT.npz holds "files" [N], names relative to DIR, "logits" float32
[N, C], and "corrupt", the names of images that cannot be read; these are also
printed, and the exit code is then 1. The architecture of a member is the one
that its pool states, unless --arch says otherwise.
"""

import collections
import concurrent.futures
import io
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from soups import tree
from soups.arguments import check_within
from soups.cli.options import Parser, path_argument
from soups.cli.show import complain, say
from soups.files import replace_file
from soups.lazy import extra
from soups.names import count_of
from soups.plugins import importable
from soups.pool import Pool
from soups.progress import progress

with extra("data", "train"):
    from soups.data.images import EXTENSIONS, is_image, memory_held, read_image, text_names
    from soups.data.transforms import center_crop, compose, resize_shorter, to_channels
    from soups.models.architectures import ARCHITECTURES, architecture
    from soups.models.import_weights import import_weights
    from soups.studies.named import architecture_of, architecture_of_member, num_classes_of


def main(arguments: list[str], run) -> int:
    """Write the logits of all images that can be read, and return the exit code: 1 if there are others."""
    run.less_memory = "a smaller --batch-size needs less"
    options = parser(run.prog).parse(arguments)
    check_within("--batch-size", options.batch_size, "[1, inf)", whole=True)
    folder, out = pathlib.Path(options.images), pathlib.Path(options.out)
    if out.is_dir() or not out.parent.is_dir():
        raise NotADirectoryError(f"--out {out}: name a file in an existing folder")
    files = _files(folder)
    with importable("."):  # architectures of one's own
        params, arch = _weights(options)
    classify = _classifier(params, arch, min(options.batch_size, len(files)))
    names, logits, corrupt = [], [], {}
    with progress("predicting", len(files), "images") as advance:
        for batch, images, reasons in _batches(folder, files, arch.image_size, options.batch_size):
            names += images
            corrupt |= reasons
            if images:
                logits.append(classify(np.stack(list(images.values()))))
            advance(len(batch))
    if not names:
        raise ValueError(f"{folder}: none of its {len(files)} images can be read: {next(iter(corrupt.values()))}")
    content = io.BytesIO()
    np.savez(content, files=np.array(names), logits=np.concatenate(logits), corrupt=np.array(list(corrupt), str))
    path = replace_file(out, content.getvalue())
    say(f"logits of {count_of(len(names), 'image')} in {path}")
    run.made(path)
    for name, reason in corrupt.items():
        complain(run.prog, f"{name} is left out: {reason}")
    return int(bool(corrupt))


# --- Weights ---


def _weights(options):
    """Return the weights and their architecture, after the names and shapes were compared with it."""
    if options.weights:
        if options.member or not options.arch:
            raise ValueError("--weights FILE needs --arch, and takes no --member")
        arch, where = architecture_of(options.arch), options.weights
        params = import_weights(options.weights, arch)
    else:
        if not options.member:
            raise ValueError("--pool POOL needs --member NAME")
        pool, where = Pool(options.pool, must_exist=True), f"member {options.member}"
        arch = options.arch and architecture_of(options.arch)
        arch = arch or architecture_of_member(pool, options.member, "give --arch")
        params = pool[options.member]
    tree.check_same_structure([arch.abstract(num_classes_of(params, where)), params], [arch.name, where], dtypes=False)
    return params, arch


def _classifier(params, arch, batch_size):
    """Return a function from uint8 images [B, S, S, 3], B up to `batch_size`, to their logits [B, C]."""
    apply = arch.apply_fn(num_classes_of(params, arch.name))
    compiled = jax.jit(lambda params, images: apply(params, images.astype(jnp.float32) / 255))
    params = jax.device_put(params)

    def classify(images):
        padding = [(0, batch_size - len(images)), (0, 0), (0, 0), (0, 0)]  # one shape, one compilation
        return np.asarray(compiled(params, np.pad(images, padding)))[: len(images)]

    return classify


# --- Images ---


def _files(folder):
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    found = (path for path in folder.rglob("*") if is_image(path.name) and path.is_file())
    files = text_names(folder, (path.relative_to(folder).as_posix() for path in found))
    if not files:
        raise ValueError(f"{folder} holds no images ({', '.join(sorted(EXTENSIONS))})")
    return files


def _batches(folder, files, size, batch_size):
    """Return (names, {name: image}, {name: why it cannot be read}), read on threads one batch ahead."""
    transform = compose(resize_shorter(size), center_crop(size), to_channels(3))
    with concurrent.futures.ThreadPoolExecutor() as threads:
        started = collections.deque()
        for start in range(0, len(files), batch_size):
            names = files[start : start + batch_size]
            started.append((names, threads.map(lambda name: _read(folder, name, transform), names)))
            if len(started) > 1:
                yield _sorted_out(*started.popleft())
        yield _sorted_out(*started.popleft())


def _read(folder, name, transform):
    """Return an image, or the reason why it cannot be read."""
    try:
        with memory_held():
            return transform(read_image(folder / name, name))
    except ValueError as error:
        return str(error).removeprefix(f"{name}: ")


def _sorted_out(names, results):
    images, reasons = {}, {}
    for name, result in zip(names, results, strict=True):
        (reasons if isinstance(result, str) else images)[name] = result
    return names, images, reasons


# --- Options ---


def parser(prog: str) -> Parser:
    """Return the parser of the options."""
    parser, path = Parser(prog=prog, description=__doc__), {"type": path_argument}
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--pool", metavar="POOL", **path, help="a pool of members or soups")
    source.add_argument("--weights", metavar="FILE", **path, help="published weights, as `soups pool import` takes")
    parser.add_argument("--member", metavar="NAME", help="the member of the pool")
    known = ", ".join(name for name in ARCHITECTURES if architecture(name).image_size is not None)
    parser.add_argument("--arch", metavar="ARCHITECTURE", help=f"{known}, or your module:function")
    parser.add_argument("--images", required=True, metavar="DIR", **path, help="a folder of images")
    parser.add_argument("--out", required=True, metavar="OUT.npz", **path, help="the file to write")
    parser.add_argument("--batch-size", type=int, default=256, metavar="N", help="images at once; default: 256")
    return parser
