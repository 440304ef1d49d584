"""Read sets of several domains, laid out as domain/class/image, as DomainBed does: decoded once, split, in minibatches.

Gulrajani and Lopez-Paz, "In search of lost domain generalization", 2020 (arXiv 2007.01434); the facts are those of its
repository, and the numbers that it draws are drawn in `soups.data.domainbed`.
"""

import dataclasses
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import xxhash

from soups.arguments import check_within
from soups.data.batches import BatchIterator
from soups.data.dataset import Dataset, Source, read_example, stack_examples
from soups.data.domainbed import SETS, split_positions
from soups.data.sources import View, class_folders, domain_folder_sources
from soups.data.transforms import RandomTransform, resize, to_channels
from soups.files import PathLike, any_path
from soups.names import check_name, few

#: what archives of the sets call the folder that holds the domains
_UNPACKED = ("kfold", "OfficeHomeDataset_10072016")


@dataclasses.dataclass(frozen=True, eq=False)
class Domain:
    """Keep one domain of a set decoded in memory.

    Attributes:
        name: of its folder, such as "art_painting".
        environment: what tables call it, such as "A"; of an unknown set the name.
        data: uint8 [N, size, size, 3], by class, then by file name.
        files: "class/file" of each image.
        digests: of each image as it was decoded, before it was resized: the same in sets of other sizes.
    """

    name: str
    environment: str
    data: Dataset
    files: tuple[str, ...]
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.data)


@dataclasses.dataclass(frozen=True, eq=False)
class DomainSet:
    """Keep a set of domains with the same classes; the place of a domain is the number of its environment."""

    name: str
    domains: tuple[Domain, ...]

    def __len__(self) -> int:
        return len(self.domains)

    def __iter__(self) -> Iterator[Domain]:
        return iter(self.domains)

    def __getitem__(self, domain: str | int) -> Domain:
        return self.domains[self.place(domain)]

    @property
    def class_names(self) -> tuple[str, ...]:
        """List the classes."""
        return self.domains[-1].data.class_names

    def place(self, domain: str | int) -> int:
        """Return the number of a domain that is given by it, its name or its environment; a ValueError for another."""
        known = [name for one in self.domains for name in dict.fromkeys((one.environment, one.name))]
        if isinstance(domain, int | np.integer) and not isinstance(domain, bool):
            if not 0 <= domain < len(self):
                raise ValueError(f"{self.name} has no domain {domain}: its {len(self)} domains count from 0")
            return int(domain)
        check_name(domain, known, f"domain of {self.name}:")
        return next(at for at, one in enumerate(self.domains) if domain in (one.environment, one.name))

    def digest(self) -> str:
        """Return a digest of the classes, and of each domain's name and images."""
        lines = [*self.class_names]
        for one in self.domains:
            lines.append(one.name)
            lines += [f"{label} {digest}" for label, digest in zip(one.data.labels, one.digests, strict=True)]
        return xxhash.xxh3_128_hexdigest("\n".join(lines).encode())


@dataclasses.dataclass(frozen=True, eq=False)
class Environment:
    """Hold one domain's two parts, drawn for a trial.

    Attributes:
        name: what tables call it.
        is_test: whether it is left out of training.
        train: 80 % of the images, DomainBed's "in": trained on, or of a test domain what is reported.
        held_out: the other 20 %, DomainBed's "out": what selects.
    """

    name: str
    is_test: bool
    train: Dataset
    held_out: Dataset


def load_domains(data_dir: PathLike, name: str, *, image_size: int, left_out: PathLike | None = None) -> DomainSet:
    """Return a set of domains, each image decoded once and resized to `image_size` pixels square, without its ratio.

    `name`: one of DomainBed's in its own folder (PACS, VLCS, OfficeHome in office_home, TerraIncognita in
    terra_incognita, DomainNet in domain_net), or any folder in `data_dir` that is laid out as domain/class/image.
    Domains are sorted by name; classes are numbered as in the last domain, which are those of all. `left_out`: a file
    with a line "domain/class/image" for each image to leave out, as DomainBed's domain_net_duplicates.txt.

    Raises:
        FileNotFoundError: no such set; one without domains; no file `left_out`.
        ValueError: fewer than two domains, or of a known set another number than it has; domains with different
            classes; a class without images; domains that are still in their archive's folder; a line of `left_out`
            that is not of the set; a broken image.
    """
    folder = _folder_of(any_path(data_dir), name)
    sources = domain_folder_sources(folder)
    known = SETS.get(name)
    if len(sources) < 2:
        raise ValueError(f"{folder}: a set needs at least 2 domains, but there is only {', '.join(sources)}")
    if known and len(sources) != len(known.environments):
        raise ValueError(
            f"{folder}: {name} has {len(known.environments)} domains, {', '.join(known.environments)}, but there are "
            f"{len(sources)} folders: {few(sources)}"
        )
    if left_out is not None:
        sources = _without(sources, any_path(left_out), folder)
    names = known.environments if known else tuple(sources)
    domains = [_decoded(*pair, image_size, name) for name, pair in zip(names, sources.items(), strict=True)]
    return DomainSet(name, tuple(domains))


def environments(
    data: DomainSet,
    trial_seed: int,
    test: Sequence[str | int] = (),
    *,
    augment_validation: RandomTransform | None = None,
) -> list[Environment]:
    """Return the two parts of each domain for a trial, split as DomainBed splits them.

    `test`: the domains that are left out of training. DomainBed augments a training domain's images whenever they are
    read, those that select among them: with `augment_validation` those of `held_out` are augmented, once and for all
    by the trial and their place, but not those of test domains.

    Raises:
        ValueError: a test domain that does not exist; a domain with fewer than 5 images, of which none would be held
            out; no domain that is left to train on.
    """
    tests = {data.place(one) for one in test}
    if len(tests) == len(data):
        raise ValueError(f"all {len(data)} domains of {data.name} are test domains: leave one to train on")
    made = []
    for place, domain in enumerate(data):
        train, held_out = split_positions(len(domain), trial_seed, place)
        if not len(held_out):
            raise ValueError(f"domain {domain.name} of {data.name} has only {len(domain)} images: none can be held out")
        held_out = domain.data.take(held_out)
        if augment_validation is not None and place not in tests:
            held_out = augmented(held_out, augment_validation, [trial_seed, place])
        made.append(Environment(domain.environment, place in tests, domain.data.take(train), held_out))
    return made


def augmented(data: Dataset, random_transform: RandomTransform, seed: int | Sequence[int]) -> Dataset:
    """Return a dataset with each image transformed once, by a generator of the seed and its place alone."""
    key = [seed] if isinstance(seed, int | np.integer) else [*seed]
    images = [random_transform(image, _generator(*key, row + 1, 2)) for row, image in enumerate(data.images)]
    return dataclasses.replace(data, images=np.stack(images))


def minibatches(
    parts: Sequence[Dataset],
    batch_size: int,
    *,
    seed: int,
    random_transform: RandomTransform | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> "Minibatches":
    """Return an endless iterable over minibatches of training domains, of which each `iter` is a `BatchIterator`.

    A batch holds `batch_size` images of the first part, then as many of the second, ..., each drawn with replacement by
    a stream of its own: {"image": uint8 [B, H, W, C], "label": int32 [B], "index": int32 [B]}, where an index counts
    within its part. What is drawn, also by `random_transform`, depends on the seed, the step and the place in the batch
    alone: any step can be gone on from. Processes share a batch as those of `soups.data.loader`.

    Raises:
        ValueError: no parts, parts with different classes or shapes; a batch size below 1; a batch that the processes
            cannot share evenly; a seed outside 0..2³²−1.
    """
    count = jax.process_count() if process_count is None else process_count
    index = jax.process_index() if process_index is None else process_index
    check_within("batch_size", batch_size, "[1, inf)", whole=True)
    check_within("seed", seed, f"[0, {2**32 - 1}]", whole=True)
    if not parts:
        raise ValueError("there must be at least one part to draw minibatches from")
    kinds = {(part.class_names, part.images.shape[1:]) for part in parts}
    if len(kinds) > 1:
        raise ValueError("the parts must have the same classes and images of one shape: they are of different sets")
    if not 0 <= index < count or len(parts) * batch_size % count:
        raise ValueError(
            f"process {index} of {count} has no even share of a batch of {len(parts)} x {batch_size} images"
        )
    share = len(parts) * batch_size // count
    rows = range(index * share, (index + 1) * share)
    return Minibatches(tuple(parts), batch_size, seed, random_transform, rows)


@dataclasses.dataclass(frozen=True, eq=False)
class Minibatches:
    """Draw the minibatches of `minibatches`, those places of each that are in `rows`."""

    parts: tuple[Dataset, ...]
    batch_size: int
    seed: int
    random_transform: RandomTransform | None
    rows: range

    def __iter__(self) -> BatchIterator:
        return BatchIterator(self._from)

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Return the batch of a step."""
        drawn = [
            _generator(self.seed, step, place, 0).integers(len(part), size=self.batch_size, dtype=np.int32)
            for place, part in enumerate(self.parts)
        ]
        index = np.concatenate(drawn)[self.rows.start : self.rows.stop]
        owners = [self.parts[row // self.batch_size] for row in self.rows]
        images = [self._image(part, at, step, row) for part, at, row in zip(owners, index, self.rows, strict=True)]
        labels = [part.labels[at] for part, at in zip(owners, index, strict=True)]
        return {"image": np.stack(images), "label": np.array(labels, np.int32), "index": index}

    def _from(self, step):
        while True:
            yield self.batch(step)
            step += 1

    def _image(self, part, at, step, row):
        if self.random_transform is None:
            return part.images[at]
        return self.random_transform(part.images[at], _generator(self.seed, step, row + 1, 1))


def check_no_leak(test: Domain | DomainSet, auxiliary: Mapping[str, Domain | DomainSet]) -> None:
    """Raise a ValueError if auxiliary sets have images of a test domain, or of a whole set, whatever they are called.

    Images are compared by the digests of their pixels as decoded, so that other names, sizes and lossless formats make
    no other image; the error says which set has how many.
    """
    mine = {digest: file for one in _domains(test) for digest, file in zip(one.digests, one.files, strict=True)}
    found = []
    for name, data in auxiliary.items():
        shared = [
            f"{mine[digest]} is {one.name}/{file} there"
            for one in _domains(data)
            for digest, file in zip(one.digests, one.files, strict=True)
            if digest in mine
        ]
        if shared:
            found.append(f"{name} has {len(shared)} of them ({shared[0]})")
    if found:
        raise ValueError(f"no image of the test set {test.name} may be in an auxiliary set, but {'; '.join(found)}")


def _domains(data):
    return [data] if isinstance(data, Domain) else data.domains


def _folder_of(data_dir, name):
    if not data_dir.is_dir():
        raise FileNotFoundError(f"{data_dir}: no such folder of sets of domains")
    folder = data_dir / (SETS[name].folder if name in SETS else name)
    if not name or not folder.is_dir():
        there = class_folders(data_dir)
        known = [one for one in SETS if (data_dir / SETS[one].folder).is_dir()]
        others = [one for one in there if one not in {SETS[known_one].folder for known_one in known}]
        where = f" (its folder is {SETS[name].folder})" if name in SETS and SETS[name].folder != name else ""
        raise FileNotFoundError(
            f"{data_dir}: no set {name!r}{where}; there are {few([*known, *others]) or 'none'}; the layout must be "
            "SET/domain/class/image"
        )
    inner = [one for one in _UNPACKED if (folder / one).is_dir()]
    if inner:
        raise ValueError(f"{folder}: its domains are still in the archive's folder {inner[0]}: move them one folder up")
    return folder


def _without(sources: Mapping[str, Source], path: pathlib.Path, folder) -> dict[str, Source]:
    """Return the sources without the images that a file lists; images that are gone already are no fault."""
    if not path.is_file():
        raise FileNotFoundError(f"left_out={str(path)!r} is not a file: it must list images, one on each line")
    lines = path.read_bytes().decode().split("\n")
    listed = {}
    for number, line in enumerate(map(str.strip, lines), start=1):
        domain, _, file = line.partition("/")
        if line and (domain not in sources or file.split("/")[0] not in sources[domain].class_names):
            raise ValueError(f"{path}: line {number} must be domain/class/image of {folder}, not {line[:200]!r}")
        listed.setdefault(domain, set()).add(file)
    kept = {}
    for name, source in sources.items():
        rows = np.array([at for at, file in enumerate(source.files) if file not in listed.get(name, ())], np.int64)
        kept[name] = View(source, rows, source.labels[rows], source.class_names)
        empty = [one for label, one in enumerate(source.class_names) if not (kept[name].labels == label).any()]
        if empty:
            raise ValueError(f"{path}: it leaves no images in {name} of the classes {few(empty, 10)}")
    return kept


def _decoded(name, source, image_size, environment) -> Domain:
    colour, resized = to_channels(3), resize(image_size, "bilinear")
    digests = [""] * len(source)

    def read(index):
        image, label = read_example(source, index, colour)
        digests[index] = xxhash.xxh3_128_hexdigest(np.array(image.shape, "<i8").tobytes() + image.tobytes())
        return resized(image), label

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        images, labels = stack_examples(pool.map(read, range(len(source))), len(source))
    data = Dataset(images, labels, tuple(source.class_names))
    return Domain(name, environment, data, tuple(source.files), tuple(digests))


def _generator(*key):
    return np.random.Generator(np.random.Philox([int(part) for part in key]))
