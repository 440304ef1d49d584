"""Fine-tune networks on the domains of a set, as DomainBed does, and measure them where they were not trained.

Gulrajani and Lopez-Paz, "In search of lost domain generalization", 2020, arXiv 2007.01434.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from soups import tree
from soups.data import Dataset
from soups.data.domainbed import random_hyperparameters
from soups.data.domains import (
    DomainSet,
    Environment,
    augmented,
    environments,
    minibatches,
)
from soups.data.transforms import RandomTransform
from soups.evaluate import Evaluator, LogitCache, accuracy, nll
from soups.evaluate.evaluator import unit_range
from soups.models.architectures import Architecture
from soups.pool import Pool, digest
from soups.pool.claims import made_once
from soups.progress import progress
from soups.studies.examples import Examples
from soups.studies.kitchen import Kitchen
from soups.studies.side_by_side import trained, turns, with_trained_heads
from soups.studies.study import Scene
from soups.train import Lanes, extract_features, probe_on_features
from soups.train.loop import Alone
from soups.train.probe import with_head

#: kinds of averages along a run, each in a pool of its own: of the weights after each step from the first checkpoint on
#: (Arpit et al., "Ensemble of averages", 2021, arXiv 2110.10832), and of those in the valley of the validation loss
AVERAGES = ("ma", "swad")


@dataclasses.dataclass(frozen=True)
class Trunk:
    """Hold a network as three functions: a stem that stays as it is, what is fine-tuned, and a linear head.

    BatchNorm normalises by the statistics that the network came with, also in training, as in DomainBed. The first
    `frozen_stages` stages are the stem, whose outputs are computed once; without them all weights are trained.
    """

    architecture: Architecture
    frozen_stages: int = 0

    def check(self) -> None:
        """Raise a ValueError if the network has no such stages to freeze."""
        count, name = self.frozen_stages, self.architecture.name
        last = getattr(self.architecture.features, "num_stages", 0)
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= last:
            raise ValueError(
                f"config.model.frozen_stages must be a whole number from 0 to {last}, of {name}, not {count!r}"
            )

    @functools.cached_property
    def _parts(self):
        whole = self.architecture
        if not self.frozen_stages:
            return None, whole.apply_fn(None)
        stem = dataclasses.replace(whole, features=whole.features.clone(end=self.frozen_stages))
        rest = dataclasses.replace(whole, features=whole.features.clone(begin=self.frozen_stages), mean=None, std=None)
        return stem.apply_fn(None), rest.apply_fn(None)

    @property
    def frozen(self) -> tuple[tuple[str, float], ...] | None:
        """Return the rules that keep the stem as it is."""
        if not self.frozen_stages:
            return None
        stages = "|".join(f"stage_{stage}_.*" for stage in range(self.frozen_stages))
        return ((f"params/(stem|{stages}).*", 0.0), (".*", 1.0))

    @functools.cached_property
    def stem(self) -> Callable[[tree.Tree, np.ndarray], jax.Array]:
        """Return the compiled function from weights and images uint8 [B, H, W, 3] to what the stem gives."""
        return jax.jit(lambda params, images: self._parts[0](params, unit_range(images)))

    def features(self, params: tree.Tree, inputs: jax.Array) -> jax.Array:
        """Return the features [B, D] of what `inputs` gave."""
        return self._parts[1](with_head(params, self.architecture.head, None), unit_range(inputs))

    def logits(self, params: tree.Tree, inputs: jax.Array) -> jax.Array:
        """Return the logits [B, C]."""
        return self._of_features(params, self.features(params, inputs))

    def loss(self, params: tree.Tree, batch: Any, key: jax.Array, *, dropout: float = 0.0) -> jax.Array:
        """Return the mean cross-entropy of a batch, a share `dropout` of whose features is dropped."""
        features = self.features(params, batch["image"])
        kept = jax.random.bernoulli(key, 1.0 - dropout, features.shape)
        logits = self._of_features(params, jnp.where(kept, features / (1.0 - dropout), 0.0))
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    def _of_features(self, params, features):
        head = self.head(params)
        return jnp.matmul(features, head["kernel"], precision="highest") + head["bias"][None]

    def head(self, params: tree.Tree) -> tree.Tree:
        """Return the head {"kernel" [D, C], "bias" [C]} of weights."""
        return functools.reduce(lambda part, name: part[name], self.architecture.head.split("/"), params)

    def with_head(self, params: tree.Tree, head: tree.Tree) -> tree.Tree:
        """Return weights with another head."""
        return with_head(params, self.architecture.head, head)

    def without_head(self, params: tree.Tree) -> tree.Tree:
        """Return weights without their head."""
        outer, _, inner = self.architecture.head.rpartition("/")
        there = params[outer] if outer else params
        return with_head(params, self.architecture.head, None) if inner in there else params


def adam(rate: float = 5e-5, weight_decay: float = 0.0) -> optax.GradientTransformation:
    """Return Adam at a constant rate with L2 regularisation, as DomainBed trains."""
    return optax.chain(optax.add_decayed_weights(weight_decay), optax.adam(rate))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course(Scene):
    """Hold the domains that networks are trained on in one trial: those of a set but what is left out, to test on it.

    `start`: pre-trained weights, with any head. `pools`: "pool" of the members, "bases" of what they start
    from, and those of `AVERAGES`.
    """

    data: DomainSet
    left_out: tuple[str, ...]
    trunk: Trunk
    start: tree.Tree
    pools: Mapping[str, Pool]
    placements: Mapping[str, Alone | Lanes]
    augment: RandomTransform

    @property
    def prefix(self) -> str:
        """Return what the names of all begin with that this course keeps."""
        return f"seed{self.seed}_{self.data.name}_{'-'.join(self.left_out) or 'all'}_"

    # --- Data ---------------------------------------------------------------------------------------------------------

    @functools.cached_property
    def environments(self) -> list[Environment]:
        """Return the domains that are trained on."""
        return [one for one in environments(self.data, self.seed, self.left_out) if not one.is_test]

    @property
    def called(self) -> str:
        """Return what is shown of what is trained: the domains that are left out, or the whole set."""
        return ", ".join(self.left_out) or self.data.name

    @functools.cached_property
    def _cache(self) -> LogitCache:
        return LogitCache(self.workdir.path / "inputs")

    def _inputs(self, data: Dataset, seed: Sequence[int] = ()) -> np.ndarray:
        """Return what the trunk keeps of images, augmented by a seed if there is one; outputs of a stem are on disk."""
        if not self.trunk.frozen_stages:
            return data.images

        def compute():
            images = augmented(data, self.augment, seed).images if seed else data.images
            return _in_batches(self.trunk.stem, self.start, images)

        return self._cache.get((self._stem, digest({"images": data.images}), *map(str, seed)), compute)

    @functools.cached_property
    def _stem(self):
        return digest({"start": self.start}) + f"-{self.trunk.frozen_stages}"

    @functools.cached_property
    def _views(self) -> list[list[np.ndarray]]:
        """Return for each domain the inputs of its images, augmented in so many ways as the config says."""
        count = self.config["model"]["views"]
        with progress(f"{self.called}: views", count * len(self.environments), "views") as advance:
            found = []
            for place, one in enumerate(self.environments):
                found.append([])
                for view in range(count):
                    found[-1].append(self._inputs(one.train, (self.seed, place, view)))
                    advance(1)
            return found

    @functools.cached_property
    def held_out(self) -> Examples:
        """Return the held-out images of all domains, which are not augmented."""
        return self._pooled([one.held_out for one in self.environments])

    @functools.cached_property
    def test(self) -> Examples:
        """Return all images of what is left out."""
        return self._pooled([self.data[domain].data for domain in self.left_out])

    def train_inputs(self) -> Examples:
        """Return the images of all domains that are trained on, which are not augmented."""
        return self._pooled([one.train for one in self.environments])

    def _pooled(self, parts):
        return Examples(np.concatenate([self._inputs(p) for p in parts]), np.concatenate([p.labels for p in parts]))

    def batches(self, seed: int, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        """Yield minibatches with `batch_size` images of each domain, drawn with replacement, augmented."""
        parts = [one.train for one in self.environments]
        if not self.trunk.frozen_stages:
            yield from minibatches(parts, batch_size, seed=seed, random_transform=self.augment)
        random = np.random.default_rng([seed, 1])
        for batch in minibatches(parts, batch_size, seed=seed):
            owners = np.repeat(np.arange(len(parts)), batch_size)
            views = random.integers(self.config["model"]["views"], size=len(owners))
            drawn = zip(owners, views, batch["index"], strict=True)
            yield {"image": np.stack([self._views[o][v][i] for o, v, i in drawn]), "label": batch["label"]}

    # --- Weights ------------------------------------------------------------------------------------------------------

    def probe(self) -> tree.Tree:
        """Return the pre-trained weights with a head fitted to their features, chosen among strengths by held-out data.

        DomainBed's runs train it by gradient steps instead; it is the same head for all members here and there.
        """

        def make():
            train = self.train_inputs()
            found = [
                extract_features(self.trunk.features, self.start, data, preprocess=unit_range)
                for data in (train, self.held_out)
            ]
            head = probe_on_features(
                found[0],
                train.labels,
                num_classes=len(self.data.class_names),
                held_out=(found[1], self.held_out.labels),
                **self.config["probe"],
            )
            return self.trunk.with_head(self.start, head)

        return made_once(self.pools["bases"], self.name("probe"), make, {"seed": self.seed})

    def with_head_of(self, probed: tree.Tree, member: tree.Tree) -> tree.Tree:
        """Return the trunk of a member of another course with the head of probed weights of this one."""
        return self.trunk.with_head(member, self.trunk.head(probed))

    def unprobed(self) -> tree.Tree:
        """Return the pre-trained weights with a head drawn at random, from U(±1/√D) as torch draws it."""
        width, classes = self.trunk.architecture.feature_dim, len(self.data.class_names)
        keys = jax.random.split(jax.random.key(self.seed))
        shapes = {"kernel": (width, classes), "bias": (classes,)}
        head = {
            name: np.asarray(jax.random.uniform(key, shape, minval=-1.0, maxval=1.0) / width**0.5)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }
        return self.trunk.with_head(self.start, head)

    def drawn(self, count: int, first: int = 0) -> list[dict[str, float | int]]:
        """Return the hyper-parameters of so many runs, as DomainBed draws them and the config changes them."""
        config, found = self.config["runs"], []
        for index in range(first, first + count):
            one = random_hyperparameters(index, self.seed, ranges=config["ranges"], dataset=self.data.name)
            one |= {"learning_rate": one["learning_rate"] * config["learning_rate_factor"]}
            found.append(one | ({"batch_size": config["batch_size"]} if config["batch_size"] else {}))
        return found

    def fill(
        self,
        family: str,
        starts: Mapping[int, Callable[[], tree.Tree]],
        *,
        steps: int | None = None,
        head_steps: int = 0,
        averages: bool = False,
        last: bool = False,
        alike: bool = False,
        weight_decay: float | None = None,
    ) -> dict[int, str]:
        """Train a member from each start, by the number of its run, as far as it is not there, and return their names.

        Several processes may do so at once.

        `head_steps`: so many steps train the head alone before. `averages`: keep those along the runs too. `last`: keep
        the weights after the last step, not those at the checkpoint that is best on held-out data. `alike`: all have
        the hyper-parameters of the first run, and differ in their minibatches alone. `weight_decay`: takes the place of
        what was drawn.
        """
        names = {index: self.name(f"{family}_{index:02d}") for index in starts}
        changed, pool = {} if weight_decay is None else {"weight_decay": weight_decay}, self.pools["pool"]
        own = {index: self.drawn(1, 0 if alike else index)[0] | changed for index in starts}
        done = sum(name in pool for name in names.values())
        with progress(f"{self.called}: {family}", len(starts), "members", done=done) as advance:
            for group in turns(self, names, own):
                begun, some = {index: starts[index]() for index in group}, {index: own[index] for index in group}
                begun = with_trained_heads(self, begun, some, head_steps) if head_steps else begun
                made = trained(self, begun, some, steps or self.config["runs"]["steps"], names, last=last)
                for index, one in made.items():
                    record = {"config": {**own[index], "run": index}, "seed": self.seed, "losses": one["losses"]}
                    # the member itself is the last, for what is in its pool is not made again
                    for kind in (*(AVERAGES if averages else ()), "pool"):
                        self._keep(self.pools[kind], names[index], one[kind], record)
                there = sum(name in pool for name in names.values())
                advance(there - done)
                done = there
            if done < len(names):  # another process has made the last ones
                advance(len(names) - done)
        for kind in AVERAGES if averages else ():
            self.pools[kind].refresh()
        return names

    def _keep(self, pool, name, params, record):
        if name not in pool:
            like = self.trunk.with_head(self.start, self.trunk.head(params))
            pool.add(name, tree.cast_like(params, like), record)

    def validated(self, params: tree.Tree) -> tuple[float, float]:
        """Return the accuracy on held-out data, as the mean over the domains, and the mean cross-entropy."""
        logits = self.held_out_logits(params)
        parts = np.cumsum([len(one.held_out) for one in self.environments])[:-1]
        pairs = list(zip(np.split(logits, parts), np.split(self.held_out.labels, parts), strict=True))
        return tuple(statistics.fmean(measure(*pair) for pair in pairs) for measure in (accuracy, nll))

    def held_out_logits(self, params: tree.Tree) -> np.ndarray:
        """Return the logits [N, C] of the held-out images."""
        return self._held_out_evaluator.logits(params)

    @functools.cached_property
    def _held_out_evaluator(self):
        return Evaluator(self.trunk.logits, self.held_out, preprocess=lambda x: x, batch_size=self._batch_size)

    @property
    def _batch_size(self):
        return self.config["evaluate"]["batch_size"]

    # --- Soups --------------------------------------------------------------------------------------------------------

    def accuracy(self, params: tree.Tree, domain: str) -> float:
        """Return the accuracy on all images of a domain that is left out."""
        if domain not in self._evaluators:
            test = self._pooled([self.data[domain].data])
            options = {"preprocess": lambda x: x, "batch_size": self._batch_size}
            self._evaluators[domain] = Evaluator(self.trunk.logits, test, **options)
        return self._evaluators[domain](params)["accuracy"]

    @functools.cached_property
    def _evaluators(self):
        return {}

    def kitchen(self, names: Iterable[str], family: str = "pool", reference: tree.Tree | None = None) -> Kitchen:
        """Return what cooks from members, and measures them on the domain that is left out."""
        return Kitchen(
            members=self.pools[family].select(list(names)),
            apply_fn=self.trunk.logits,
            held_out=self.held_out,
            test=self.test,
            shifts={},
            directory=self.workdir.path,
            seed=self.seed,
            prefix=self.prefix,
            batch_size=self._batch_size,
            preprocess=lambda inputs: inputs,
            reference=reference,
            reestimate=lambda averaged: averaged,  # the statistics of all members are those of the start
            keep="members",
            per_class=False,
        )


def _in_batches(function, params, images, size=256) -> np.ndarray:
    """Return what a function gives of all images, in batches of one size, so that it is compiled once for all sets."""
    found = []
    for begin in range(0, len(images), size):
        some = images[begin : begin + size]
        padded = np.concatenate([some, np.zeros((size - len(some), *some.shape[1:]), some.dtype)])
        found.append(np.asarray(function(params, padded))[: len(some)])
    return np.concatenate(found)
