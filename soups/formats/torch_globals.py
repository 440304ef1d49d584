"""Stand in for the few globals that a pickle of tensors names: each is a record, and nothing of torch's."""

import dataclasses
from collections.abc import Callable

import ml_dtypes as ml_dtypes
import numpy as np

from soups.formats.tensors import MAX_RANK, CheckpointError, UnsafeCheckpointError, short

_DTYPES = "float64 float32 float16 bfloat16 float8_e4m3fn float8_e5m2 float8_e4m3fnuz float8_e5m2fnuz float8_e8m0fnu "
_DTYPES += "complex64 complex128 int64 int32 int16 int8 uint64 uint32 uint16 uint8 bool"
DTYPES = {name: np.dtype(name) for name in _DTYPES.split()}  # NumPy knows the names of ml_dtypes, which is imported
_OTHER_NAMES = {"double": "float64", "float": "float32", "half": "float16"}
_OTHER_NAMES |= {"long": "int64", "int": "int32", "short": "int16"}
DTYPES |= {name: DTYPES[same] for name, same in _OTHER_NAMES.items()}
STORAGES = {name.capitalize(): same for name, same in _OTHER_NAMES.items()} | {"BFloat16": "bfloat16", "Bool": "bool"}
STORAGES |= {"ComplexDouble": "complex128", "ComplexFloat": "complex64"}
STORAGES |= {"Char": "int8", "Byte": "uint8", "Untyped": "uint8"}


# The stand-ins are no tuples: a tuple from the file can then never be taken for one.


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StorageType:
    """Stand for one of torch's classes of storages."""

    dtype: np.dtype | None


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Storage:
    """Stand for a storage: the bytes that the container keeps under `key`."""

    key: str
    dtype: np.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """Count its bytes."""
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """Stand for a view of a storage; offset and strides count elements of `dtype`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype


@dataclasses.dataclass(slots=True, eq=False)
class Record:
    """Stand for an object that carries no weights; its parts are kept to see that no tensor hangs on it."""

    name: str
    parts: list


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Function:
    """Stand for a function or class: calling it makes a stand-in, of an inert one a `Record`."""

    name: str
    call: Callable
    inert: bool = False


class Refused(Exception):
    """Say what cannot be read, before the file is known."""

    def __init__(self, message, kind=CheckpointError):
        super().__init__(message)
        self.kind = kind


def resolve(module: str, name: str) -> np.dtype | StorageType | Function:
    """Return the stand-in of a global; any that is not needed for tensors is refused by name."""
    if module == "torch" and name in DTYPES:
        return DTYPES[name]
    if module in ("torch", "torch.cuda", "torch.storage"):
        if name.endswith("Storage") and name.removesuffix("Storage") in STORAGES:
            return StorageType(DTYPES[STORAGES[name.removesuffix("Storage")]])
        if name == "TypedStorage":
            return StorageType(None)
    full = f"{module}.{name}"
    if module == "__builtin__":  # of Python 2, whose names protocol 2 has
        full = f"builtins.{_OF_PYTHON_2.get(name, name)}"
    if full in INERT:
        return Function(full, lambda *arguments: Record(full, list(arguments)), inert=True)
    function = _FUNCTIONS.get(full)
    if function is None:
        raise Refused(
            f"refused to load the global {short(f'{module}.{name}')}: weights do not need it, and it could run code; "
            "save the state_dict alone, as tensors by name",
            UnsafeCheckpointError,
        )
    return Function(full, function)


def storage(identity: object) -> Storage:
    """Make the storage of a persistent id: ("storage", type, key, location, count[, view])."""
    if type(identity) is not tuple or len(identity) not in (5, 6):
        raise Refused("a persistent id that is not a storage's")
    kind, storage_type, key, _, count, *view = identity
    # types first: NumPy's dtypes compare equal to strings and to None
    if type(kind) is not str or kind != "storage" or type(storage_type) is not StorageType or type(key) is not str:
        raise Refused("a persistent id that is not a storage's")
    if storage_type.dtype is None:
        raise Refused(f"storage {short(key)} has no dtype")
    if type(count) is not int or not 0 <= count < 1 << 60:
        raise Refused(f"storage {short(key)} has a size that is not a count of elements")
    if view and view[0] is not None:
        raise Refused(f"storage {short(key)} is a view of another one; save the file again with a current torch")
    return Storage(key, storage_type.dtype, count)


def set_item(mapping: dict | Record, key: object, value: object) -> None:
    """Put an item into a dict of strings, or into a record that was a dict of a kind."""
    if type(mapping) is Record:
        mapping.parts.extend((key, value))
        return
    if type(key) is Function and key.inert:
        key = key.name
    # integers can be chosen to collide in a dict, strings cannot
    key = str(key) if type(key) is int and abs(key) < 1 << 63 else key
    if type(mapping) is not dict or type(key) is not str:
        raise Refused(f"an item of a {type(mapping).__name__} under a key of type {type(key).__name__}")
    if key in mapping:
        raise Refused(f"two items under the key {short(key)}")
    mapping[key] = value


def _tensor(storage, offset, shape, strides, dtype=None):
    if type(storage) is not Storage or type(shape) not in (tuple, list) or type(strides) not in (tuple, list):
        raise TypeError
    if len(shape) > MAX_RANK:
        raise Refused(f"a tensor of {len(shape)} dimensions, more than {MAX_RANK}")
    counts = [offset, *shape, *strides]
    if not all(type(count) is int and 0 <= count < 1 << 63 for count in counts) or len(shape) != len(strides):
        raise Refused("a tensor whose offset, shape or strides are not counts of elements")
    return Tensor(storage, offset, tuple(shape), tuple(strides), storage.dtype if dtype is None else dtype)


def _tensor_2(storage, offset, shape, strides, requires_grad, hooks, metadata=None):
    _check_bits(metadata)
    return _tensor(storage, offset, shape, strides)


def _tensor_3(storage, offset, shape, strides, requires_grad, hooks, dtype, metadata=None):
    _check_bits(metadata)
    if not isinstance(dtype, np.dtype):
        raise TypeError
    return _tensor(storage, offset, shape, strides, dtype)


def _check_bits(metadata):
    # a conjugated or negated view has other values than its bytes
    if metadata is not None and (type(metadata) is not dict or any(bit is not False for bit in metadata.values())):
        raise Refused("a tensor with a conjugate or negative bit: save tensor.resolve_conj().resolve_neg()")


def _parameter(tensor, requires_grad, hooks, state=None):
    if type(tensor) is not Tensor:
        raise TypeError
    return tensor


def _mapping(items=()):
    mapping = {}
    if type(items) is dict:  # of a Counter
        return items
    if type(items) not in (list, tuple):
        raise TypeError
    for item in items:
        if type(item) not in (list, tuple) or len(item) != 2:
            raise TypeError
        set_item(mapping, *item)
    return mapping


def _defaultdict(default=None):
    if default is not None and not (type(default) is Function and default.name in _CONTAINERS):
        raise TypeError
    return {}


def _size(sizes=()):
    if type(sizes) not in (list, tuple):
        raise TypeError
    return tuple(sizes)


_OF_PYTHON_2 = {"long": "int", "unicode": "str", "xrange": "range"}
_CONTAINERS = {f"builtins.{name}" for name in ("list", "dict", "set", "int", "float", "str", "tuple", "bool", "bytes")}
_CONTAINERS.add("collections.OrderedDict")
_PATHS = "Path PosixPath WindowsPath PurePath PurePosixPath PureWindowsPath"
# well-known classes of settings and numbers, which a checkpoint may carry beside its weights
INERT = {
    f"{module}.{name}"
    for module, names in {
        "argparse": "Namespace",
        "types": "SimpleNamespace",
        "pathlib": _PATHS,
        "pathlib._local": _PATHS,
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID",
        "typing": "Any",
        "collections": "deque",
        "builtins": "set frozenset bytes bytearray complex list tuple dict int float str bool range slice object "
        "Ellipsis NotImplemented",
        "_codecs": "encode",  # how protocol 2 writes bytes
        "time": "struct_time",
        "torch.torch_version": "TorchVersion",
        "torch.serialization": "_get_layout",
        "numpy": "dtype ndarray",
        "numpy.core.multiarray": "scalar _reconstruct",
        "numpy._core.multiarray": "scalar _reconstruct",
        "numpy.core.numeric": "_frombuffer",
        "numpy._core.numeric": "_frombuffer",
        "omegaconf.dictconfig": "DictConfig",
        "omegaconf.listconfig": "ListConfig",
        "omegaconf.base": "Metadata ContainerMetadata",
        "omegaconf.nodes": "AnyNode StringNode IntegerNode FloatNode BooleanNode",
        "easydict": "EasyDict",
        "addict.addict": "Dict",
        "yacs.config": "CfgNode",
        "ml_collections.config_dict.config_dict": "ConfigDict FrozenConfigDict",
        "mmengine.config.config": "ConfigDict",
        "mmcv.utils.config": "ConfigDict",
        "mmengine.logging.history_buffer": "HistoryBuffer",
        "pytorch_lightning.utilities.parsing": "AttributeDict",
        "lightning_fabric.utilities.data": "AttributeDict",
        "lightning.fabric.utilities.data": "AttributeDict",
        "pytorch_lightning.callbacks.model_checkpoint": "ModelCheckpoint",
        "pytorch_lightning.callbacks.early_stopping": "EarlyStopping",
    }.items()
    for name in names.split()
}
_FUNCTIONS = {
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _defaultdict,
    "torch._utils._rebuild_tensor": lambda storage, offset, shape, strides: _tensor(storage, offset, shape, strides),
    "torch._utils._rebuild_tensor_v2": _tensor_2,
    "torch._utils._rebuild_tensor_v3": _tensor_3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.Size": _size,
    "torch.device": lambda kind, index=None: None,
}
