"""Unpickle the modules of TorchScript archives as inert records: a class is a word, and its code is not even read.

What `torch.jit.save` writes into data.pkl is one object of a class `__torch__...`, made without arguments, whose state
is a dict: of tensors, of other such objects, and of settings. Beside `unpickle`'s opcodes it needs one that makes an
object, one that gives it this state, and the tags by which typed lists and dicts are marked.
"""

import dataclasses

from soups.formats.tensors import UnsafeCheckpointError, short
from soups.formats.torch_globals import Function, Refused, resolve
from soups.formats.torch_pickle import OPERATIONS

CLASSES = "__torch__"  # the root of all names of an archive's own classes
TAGS = tuple(
    f"torch.jit._pickle.{name}"
    for name in ("restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Class:
    """Stand for a class of the archive's code, of which nothing but the name is known."""

    name: str


@dataclasses.dataclass(slots=True, eq=False)
class Module:
    """Stand for an object of such a class; `attributes` is None until it got its state."""

    name: str
    attributes: dict[str, object] | None = None


def _global(machine):
    module, name = machine.line(), machine.line()
    if module.split(".", 1)[0] == CLASSES:
        machine.stack.append(Class(f"{module}.{name}"))
    elif f"{module}.{name}" in TAGS:
        # typed lists and dicts are no part of a state dict
        machine.stack.append(Function(f"{module}.{name}", lambda *arguments: None))
    else:
        machine.stack.append(resolve(module, name))


def _new_object(machine):
    arguments, kind = machine.stack.pop(), machine.stack.pop()
    if type(kind) is not Class:
        raise Refused(
            f"an object of a {type(kind).__name__}, which is not a class of the archive", UnsafeCheckpointError
        )
    if type(arguments) is not tuple or arguments:
        raise Refused(f"an object of {short(kind.name)} is made with arguments", UnsafeCheckpointError)
    machine.stack.append(Module(kind.name))


def _build(machine):
    state, module = machine.stack.pop(), machine.stack[-1]
    if type(module) is not Module:
        raise Refused(f"a state for a {type(module).__name__}", UnsafeCheckpointError)
    if module.attributes is not None:
        raise Refused(f"two states for one object of {short(module.name)}")
    if type(state) is not dict:
        raise Refused(
            f"an object of {short(module.name)} has a state of its own making, which only its code can read; "
            "save the state_dict alone"
        )
    module.attributes = state


SCRIPT_OPERATIONS = OPERATIONS | {ord("c"): _global, 0x81: _new_object, ord("b"): _build}
