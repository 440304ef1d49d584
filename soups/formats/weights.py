"""Decide which of a checkpoint's trees are the weights: one rule for torch files, Orbax and npz."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from soups.formats.tensors import CheckpointError, Leaf, listed, separator

Path = tuple[str, ...]

# What holds the weights, by name: in all trees; at the top of a torch file; and what may also be a part of a model.
CERTAIN = ("params", "target", "optimizer/target", "opt/target")
OF_TORCH = (*CERTAIN, "state_dict", "model_state_dict", "model")
WRAPPERS = (*OF_TORCH, "model_params", "net", "network", "module", "weights", "parameters")
# collections of Flax, Scenic, T5X and Kauldron that a network needs beside its params
BELONG = ("batch_stats", "model_state", "flax_mutables", "collections")
MAX_WRAPPERS = 8  # in each other
ALL = "."  # chooses the whole checkpoint
# words that tell one tree of weights from another one of the same model
_AVERAGES = {"ema", "shadow", "swa", "polyak"}
_OTHERS = {*_AVERAGES, "avg", "average", "averaged", "best", "last", "target", "teacher", "student", "online", "old"}
_WORDS = {"params", "param", "state", "dict", "model", "net", "network", "module", "weights", "weight", "variables"}
_OPTIMIZER = re.compile(
    r"(\w+_)?(optims?|optimi[sz]ers?|opt_states?)(_\w+)?|opts?|opt_[gd]|tx|grads?|gradients?", re.IGNORECASE
)
_BESIDE = re.compile(
    r"(\w+_)?(schedulers?|scalers?|rngs?|metrics?|loss|losses|steps?|epochs?)(_\w+)?|best_\w+|amp|callbacks|loops"
    r"|prng\w*|random_states?|keys?|iterations?|iter(_num)?|num_updates|history|hparams|hyper_parameters|config|args"
    r"|version|extra_state|task_state|criterion|cache|intermediates",
    re.IGNORECASE,
)
_OPTIONS = f"choose one with PATH@NAME, or the whole checkpoint with PATH@{ALL}"
_OF_TORCH_OPTIMIZER = re.compile(r"(^|[./])((max_)?exp_avg(_sq)?|momentum_buffer|square_avg)($|[./])")
# Optax's state of Adafactor, and torch's of Adam; what Optax's others keep beside `mu` and `count`
_MOMENTS = ({"v_row", "v_col"}, {"exp_avg", "exp_avg_sq"})
_BESIDE_MU = {"nu", "nu_max", "ns_coeffs", "hessian_fn_state"}


def weights(
    tree: Mapping[str, Any],
    where: Any,
    *,
    is_tensor: Callable[[Any], bool],
    choice: str | None = None,
    wrapped: bool = False,
) -> tuple[Mapping[str, Any], list[str]]:
    """Return the weights among nested mappings, and the names of what was left out.

    Known names are taken whatever lies beside them: `params`, with `batch_stats` if there are any; of a torch file
    (`wrapped`) also `state_dict`, `model` and the like, which in other trees are taken only if nothing beside them can
    be a part of the model. The state of an optimizer is never taken. A tree without such names is taken whole.

    `tree`: from keys to mappings, tensors (as `is_tensor` says) and anything else. `where`: begins the message of an
    error. `choice`: the keys of one tree, joined with "/", or "." for all.
    """
    chosen, left = (tree, []) if choice is None else _chosen(tree, choice, where, is_tensor)
    if choice == ALL or (choice is not None and not _has_moments(chosen)):
        return chosen, left
    above = () if choice is None else (choice,)
    taken, more = _decide(chosen, where, is_tensor, wrapped and choice is None, above)
    if _has_moments(taken):
        raise CheckpointError(
            f"{where} holds the state of an optimizer among its trees: "
            f"{listed(_names(above, _groups(chosen, is_tensor)))}; {_OPTIONS}"
        )
    return taken, left + more


def weights_by_path(
    leaves: Iterable[Path], where: Any, choice: str | None = None
) -> tuple[dict[Path, Path], list[str]]:
    """Return the weights among tensors that are known by their keys, as `weights` does, and what was left out.

    The first is from the keys below the tree that was taken to all keys, in the order of `leaves`.
    """
    tree = {}
    for path in sorted(leaves, key=len):
        node, keys = tree, list(path)
        while len(keys) > 1 and isinstance(node.get(keys[0], {}), dict):
            node = node.setdefault(keys.pop(0), {})
        node["/".join(keys)] = (path, keys)  # a name may be a tensor and a folder
    taken, left = weights(tree, where, is_tensor=lambda item: isinstance(item, tuple), choice=choice)
    new, stack = {}, [((), taken)]
    while stack:
        keys, node = stack.pop()
        for key, item in node.items():
            if isinstance(item, dict):
                stack.append(((*keys, key), item))
            else:
                path, last = item
                new[path] = (*keys, *last)
    return {new[path]: path for path in leaves if path in new}, left


def weights_by_name(
    leaves: Iterable[Leaf], aliases: Mapping[str, str], where: Any, choice: str | None = None
) -> tuple[list[Leaf], dict[str, str], list[str]]:
    """Return the weights among tensors with the names that they have below the tree that was taken, and what was left.

    Keys are what stands between "/", or "." where no name has a "/".
    """
    known = {leaf.name: leaf for leaf in leaves}
    names = [*known, *aliases]
    mark = separator(names)
    choice = choice if choice in (None, ALL) else choice.replace(mark, "/")
    found, left = weights_by_path([tuple(name.split(mark)) for name in names], where, choice)
    taken, tied, first = [], {}, {}
    for keys, old in found.items():
        name, kept = mark.join(keys), aliases.get(mark.join(old), mark.join(old))
        if kept in first:
            tied[name] = first[kept]
        else:
            first[kept] = name
            taken.append(dataclasses.replace(known[kept], name=name))
    return taken, tied, left


def several(where: Any, names: Iterable[str]) -> CheckpointError:
    """Return the error that lists the trees that could be meant."""
    return CheckpointError(f"{where} holds several trees that could be the weights: {listed(names)}; {_OPTIONS}")


def check_no_moments(names: Iterable[str], where: Any) -> None:
    """Raise a CheckpointError if some of the tensors of a plain file are the state of an optimizer of torch."""
    if found := [name for name in names if _OF_TORCH_OPTIMIZER.search(name)]:
        raise CheckpointError(f"{where} holds the state of an optimizer: {listed(found, 3)}; {_OPTIONS}")


def left_out(names: Sequence[str]) -> tuple[str, ...]:
    """Return the note that says what was left out, or none."""
    return (f"left out: {listed(names)}",) if names else ()


def _chosen(tree, choice, where, is_tensor):
    node, rest, left = tree, choice, []
    if choice == ALL:
        return tree, []
    while rest is not None:
        # a key may hold "/" itself
        keys = [key for key in _groups(node, is_tensor) if f"{rest}/".startswith(f"{key}/")]
        if not keys:
            top = _groups(tree, is_tensor)
            there = [*top, *(f"{key}/{inner}" for key in top for inner in _groups(top[key], is_tensor))]
            known = f"there are: {listed(there)}" if there else "it holds tensors, not trees"
            raise CheckpointError(f"{where} has no tree {listed([choice])}; {known}")
        key = max(keys, key=len)
        taken = choice[: len(choice) - len(rest)]
        left += [f"{taken}{other}" for other in node if other != key]
        node, rest = node[key], rest[len(key) + 1 :] if rest != key else None
    return node, left


def _decide(node, where, is_tensor, wrapped, above):
    """Return the weights below the keys `above`, and the full names of what is left out."""
    if len(above) > MAX_WRAPPERS:
        return node, []
    node = _old_flax(node)
    groups = _groups(node, is_tensor)
    known = {*WRAPPERS, *BELONG}
    training = [k for k, v in groups.items() if k not in known and (_OPTIMIZER.fullmatch(k) or _is_adam(v))]
    training += _loose_moments(node, groups)
    trees = [key for key in groups if key not in training]
    main = _known(node, trees, is_tensor, wrapped, above)
    beside = [key for key in trees if key in BELONG] if main and main[0] in CERTAIN else []
    averages = [key for key in trees if key not in main and is_average(key, wrapped)]
    rivals = [key for key in trees if key in main + averages or not _BESIDE.fullmatch(key)]
    if len(main) + len(averages) > 1 or (len(rivals) > 1 and not set(main) & set(OF_TORCH) and (main or averages)):
        raise several(where, _names(above, rivals))
    if not (main or averages):
        return _rest(node, trees, training, where, is_tensor, wrapped, above)
    (taken,) = main or averages
    if len(node) == 1 + len(beside) and taken in CERTAIN and not wrapped:
        return node, []  # Linen's variables, whole
    left = _names(above, (key for key in node if key != taken and key not in beside))
    if beside:
        return {key: node[key] for key in (taken, *beside)}, left
    inner, more = _decide(node[taken], where, is_tensor, wrapped, (*above, taken))
    return inner, left + more


def _names(above, keys):
    return ["/".join((*above, key)) for key in keys]


def _known(node, trees, is_tensor, wrapped, above):
    """Return the trees whose names say that they are the weights."""
    if wrapped and not above:
        return [key for key in trees if key in WRAPPERS]
    others = [key for key in trees if key not in WRAPPERS and not is_average(key, wrapped)]
    others += [key for key, value in node.items() if is_tensor(value)]
    alone = (len(node) > 1 or wrapped) and all(_BESIDE.fullmatch(key) for key in others)
    return [key for key in trees if key in CERTAIN] or [key for key in trees if key in WRAPPERS and alone]


def _rest(node, trees, training, where, is_tensor, wrapped, above):
    """Take all but the state of an optimizer, or what a single tree without a known name has inside."""
    tensors = [key for key, value in node.items() if is_tensor(value)]
    if training and not trees and all(_BESIDE.fullmatch(key) for key in tensors):
        names = listed(_names(above, training))
        raise CheckpointError(f"{where} holds the state of an optimizer and no weights: {names}")
    if training:
        left = [key for key in node if key in training or (key in tensors and _BESIDE.fullmatch(key))]
        return {key: value for key, value in node.items() if key not in left}, _names(above, left)
    trees = [key for key in trees if not _BESIDE.fullmatch(key)] or trees
    if len(trees) == 1 and all(_BESIDE.fullmatch(key) for key in tensors):
        inner, left = _decide(node[trees[0]], where, is_tensor, wrapped, (*above, trees[0]))
        if inner is not node[trees[0]]:
            return inner, _names(above, (key for key in node if key != trees[0])) + left
    return node, []


def _old_flax(node):
    """Show the weights that flax.optim and T5X kept in their optimizer."""
    for key in ("optimizer", "opt"):
        if isinstance(node.get(key), Mapping) and isinstance(node[key].get("target"), Mapping):
            inner = {f"{key}/{name}": item for name, item in node[key].items()}
            return inner | {name: item for name, item in node.items() if name != key}
    return node


def is_beside(key: str) -> bool:
    """Say whether a name is that of what a training keeps beside its weights, such as the state of an optimizer."""
    return bool(_OPTIMIZER.fullmatch(key) or _BESIDE.fullmatch(key))


def is_average(key: str, wrapped: bool = False) -> bool:
    """Say whether a name is that of other weights of the same model, such as an average."""
    words = set(re.split(r"[_.\-/]", key.lower()))
    return bool(words & _OTHERS and words <= _OTHERS | _WORDS) or (wrapped and bool(words & _AVERAGES))


def _groups(node, is_tensor):
    return {key: value for key, value in node.items() if isinstance(value, Mapping) and _any(value, is_tensor)}


def _any(node, is_tensor):
    """Say whether a mapping holds a tensor somewhere; mappings from a file may hold each other."""
    return any(is_tensor(item) for below in _below(node) for item in below.values())


def _has_moments(node):
    return any(_are_moments(below) for below in _below(node))


def _are_moments(node):
    # the mean that a normaliser of inputs keeps is a tensor, or lies beside a deviation
    optax = isinstance(node.get("mu"), Mapping) and node.keys() - _BESIDE_MU == {"mu", "count"}
    return optax or any(moments <= node.keys() for moments in _MOMENTS)


def _loose_moments(node, groups):
    """Return the keys of Optax's state of Adam that lie beside the tree that they are of."""
    if not {"mu", "nu"} <= groups.keys() or "count" not in node:
        return []
    keys = groups["mu"].keys()
    others = [item for key, item in groups.items() if key not in ("mu", "nu")]
    return ["mu", "nu"] if groups["nu"].keys() == keys and any(item.keys() == keys for item in others) else []


def _is_adam(node):
    return _has_moments(node) and not any(below.keys() & set(WRAPPERS) for below in _below(node))


def _below(node):
    """Go through a mapping and all mappings in it, each once."""
    seen, stack = {id(node)}, [node]
    while stack:
        node = stack.pop()
        yield node
        for item in node.values():
            if isinstance(item, Mapping) and id(item) not in seen:
                seen.add(id(item))
                stack.append(item)
