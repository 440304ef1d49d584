"""Unpickle what torch.save writes, without executing anything.

An interpreter of the pickle opcodes that a checkpoint of tensors needs. It is not a subclass of `pickle.Unpickler`, as
that one imports and calls what it is told to, sizes its memo as it is told to, and hashes any tuple as a key, which
takes for ever where tuples share parts. Here a global is a word in a short list, calling one makes a record, and no
loop is longer than the file.
"""

import struct
import sys
from collections.abc import Callable, Mapping

from soups.formats.tensors import MAX_RANK, CheckpointError, UnsafeCheckpointError
from soups.formats.torch_globals import Function, Record, Refused, Storage, Tensor, resolve, set_item, storage

MAX_PICKLE = 128 << 20  # bytes; 100 000 tensors take about 30 MB
MAX_STEPS = 10_000_000  # opcodes; 100 000 tensors take about 4 million
MAX_MEMORY = 1 << 31  # bytes that the values of a pickle may take, by an estimate that is rather too high
ALLOWANCE, FACTOR = 1 << 24, 64  # bytes of it for any pickle, and for each byte of one
MAX_INTEGER = 1024  # bytes
MAX_LINE = 1024  # bytes of a name of a global


def unpickle(data: memoryview, path, operations: Mapping[int, Callable] | None = None) -> tuple[object, int]:
    """Return the value of the first pickle in `data`, and how many bytes it takes.

    Mappings come as dicts whose integer keys are strings, tensors as `Tensor`, settings and the like as `Record`.
    `operations`: by opcode; None for those of `torch.save`.
    """
    machine = _Machine(data, operations or OPERATIONS)
    try:
        value = machine.run()
        _check_records(machine.records)
        return value, machine.at
    except Refused as error:
        raise error.kind(f"{path}: {error}") from None
    except (IndexError, KeyError, UnicodeDecodeError, struct.error) as error:
        cut = f", or longer than {MAX_PICKLE} bytes" if len(data) > MAX_PICKLE else ""
        raise CheckpointError(f"{path}: the pickle is damaged at its byte {machine.at}{cut}") from error


def memory_for(size: int) -> int:
    """Return how many bytes of memory may be taken for a pickle of `size` bytes."""
    return min(ALLOWANCE + FACTOR * size, MAX_MEMORY)


def _check_records(records):
    seen, stack = set(), list(records)
    while stack:
        item = stack.pop()
        if type(item) in (Tensor, Storage):
            names = ", ".join(sorted({record.name for record in records}))
            raise Refused(
                f"a tensor lies behind an object that is not read (one of {names}); save the state_dict alone"
            )
        if type(item) in (dict, list, tuple, Record) and id(item) not in seen:
            seen.add(id(item))
            stack.extend(item.parts if type(item) is Record else item.values() if type(item) is dict else item)


class _Machine:
    def __init__(self, data, operations):
        self.data, self.operations = data[:MAX_PICKLE], operations
        self.at = self.steps = self.spent = 0
        self.stack, self.marks, self.memo, self.records = [], [], {}, []

    def run(self):
        for self.steps in range(1, MAX_STEPS + 1):
            code = self.data[self.at]
            self.at += 1
            if code == _STOP:
                self.check()
                return self.stack.pop()
            operation = self.operations.get(code)
            if operation is None:
                raise Refused(f"opcode 0x{code:02x} at byte {self.at - 1} of the pickle: torch.save does not write it")
            operation(self)
            if not self.steps & 255:
                self.check()
        raise Refused(f"a pickle of more than {MAX_STEPS} opcodes")

    def take(self, size):
        end = self.at + size
        if end > len(self.data):
            raise IndexError
        taken = bytes(self.data[self.at : end])
        self.at = end
        return taken

    def number(self, size, signed=False):
        return int.from_bytes(self.take(size), "little", signed=signed)

    def line(self):
        text, newline, _ = bytes(self.data[self.at : self.at + MAX_LINE]).partition(b"\n")
        if not newline:
            raise IndexError
        self.at += len(text) + 1
        return text.decode()

    def check(self):
        spent = self.spent + 16 * self.steps  # a value's place on the stack
        if spent > memory_for(self.at):
            raise Refused(f"values of more than {memory_for(self.at)} bytes in {self.at} bytes of pickle")

    def spend(self, value):
        self.spent += sys.getsizeof(value) + 16  # what the garbage collector adds

    def mark(self):
        self.spent += 72
        self.marks.append(self.stack)  # out of reach until the mark is taken back
        self.stack = []

    def since_mark(self):
        items, self.stack = self.stack, self.marks.pop()
        return items

    def put(self, index):
        # picklers count; a sparse memo could be made to collide
        if index > self.steps:
            raise Refused(f"memo entry {index} before opcode {self.steps}")
        self.spent += 100
        self.memo[index] = self.stack[-1]


def _push(get):
    def operation(machine):
        value = get(machine)  # first: it may change the stack for another
        machine.stack.append(value)

    return operation


def _make(get):
    def operation(machine):
        value = get(machine)
        machine.spend(value)
        machine.stack.append(value)
        if type(value) is Record:
            machine.records.append(value)

    return operation


def _integer(size_of_size):
    def operation(machine):
        size = machine.number(size_of_size)
        if size > MAX_INTEGER:
            raise Refused(f"an integer of {size} bytes")
        return machine.number(size, signed=True)

    return _make(operation)


def _string(size_of_size):
    return _make(lambda machine: machine.take(machine.number(size_of_size)).decode())


def _string_of_python_2(size_of_size):
    def operation(machine):
        content = machine.take(machine.number(size_of_size))
        try:
            return content.decode()
        except UnicodeDecodeError:  # bytes were strings too
            return content

    return _make(operation)


def _bytes(size_of_size):
    return _make(lambda machine: machine.take(machine.number(size_of_size)))


def _tuple(size):
    def operation(machine):
        if len(machine.stack) < size:
            raise IndexError
        machine.stack[len(machine.stack) - size :] = [tuple(machine.stack[len(machine.stack) - size :])]
        machine.spend(machine.stack[-1])

    return operation


def _mapping(machine):
    machine.spent += 232  # with room for its first items
    machine.stack.append({})


def _set_items(machine, items):
    if len(items) % 2:
        raise IndexError
    machine.spent += 40 * len(items)
    for key, value in zip(items[::2], items[1::2], strict=True):
        set_item(machine.stack[-1], key, value)


def _pop_two(machine):
    second = machine.stack.pop()
    return [machine.stack.pop(), second]


def _append(machine, items, kinds=(list, Record)):
    target = machine.stack[-1]
    if type(target) not in kinds:
        raise Refused(f"elements of a {type(target).__name__}")
    (target if type(target) is list else target.parts).extend(items)


def _stack_global(machine):
    module, name = _pop_two(machine)
    if type(module) is not str or type(name) is not str:
        raise Refused("a global whose name is not a string")
    return resolve(module, name)


def _call(machine):
    function, arguments = _pop_two(machine)
    if type(function) is not Function or type(arguments) is not tuple:
        raise Refused(f"a call of a {type(function).__name__}, which is not a function", UnsafeCheckpointError)
    # one long list may be the argument of many calls
    machine.check()
    machine.spent += 16 * (len(arguments) + sum(len(x) for x in arguments[:MAX_RANK] if type(x) in (list, tuple)))
    try:
        return function.call(*arguments)
    except TypeError as error:
        raise Refused(f"{function.name} is called with arguments that torch.save does not write") from error


def _protocol(machine):
    protocol = machine.number(1)
    if not 2 <= protocol <= 5:
        raise Refused(f"pickle protocol {protocol}; torch.save writes 2 to 5")


def _new_object(machine):
    kind, arguments = _pop_two(machine)
    if type(kind) is not Function or not kind.inert or type(arguments) is not tuple:
        raise Refused("an object of a class that is not known to be inert", UnsafeCheckpointError)
    machine.spend(arguments)
    return kind.call(*arguments)


def _build(machine):
    state = machine.stack.pop()
    if type(machine.stack[-1]) is Record:
        machine.stack[-1].parts.append(state)
    elif type(machine.stack[-1]) is not dict:  # the attributes of a state dict are of no use here
        raise Refused(f"a state for a {type(machine.stack[-1]).__name__}", UnsafeCheckpointError)


_STOP = ord(".")
OPERATIONS = {
    ord(code): operation
    for code, operation in {
        "\x80": _protocol,
        "\x95": lambda machine: machine.take(8),  # frame: only for buffering
        "N": _push(lambda machine: None),
        "\x88": _push(lambda machine: True),
        "\x89": _push(lambda machine: False),
        "K": _push(lambda machine: machine.number(1)),
        "M": _make(lambda machine: machine.number(2)),
        "J": _make(lambda machine: machine.number(4, signed=True)),
        "\x8a": _integer(1),
        "\x8b": _integer(4),
        "G": _make(lambda machine: struct.unpack(">d", machine.take(8))[0]),
        "X": _string(4),
        "\x8c": _string(1),
        "\x8d": _string(8),
        "U": _string_of_python_2(1),
        "T": _string_of_python_2(4),
        "B": _bytes(4),
        "C": _bytes(1),
        "\x8e": _bytes(8),
        "\x96": _bytes(8),  # a bytearray
        "}": _mapping,
        "]": _make(lambda machine: []),
        "\x8f": _make(lambda machine: Record("builtins.set", [])),
        "\x90": lambda machine: _append(machine, machine.since_mark(), (Record,)),
        "\x91": _make(lambda machine: Record("builtins.frozenset", machine.since_mark())),
        ")": _push(lambda machine: ()),
        "(": lambda machine: machine.mark(),
        "t": _make(lambda machine: tuple(machine.since_mark())),
        "\x85": _tuple(1),
        "\x86": _tuple(2),
        "\x87": _tuple(3),
        "s": lambda machine: _set_items(machine, _pop_two(machine)),
        "u": lambda machine: _set_items(machine, machine.since_mark()),
        "a": lambda machine: _append(machine, [machine.stack.pop()]),
        "e": lambda machine: _append(machine, machine.since_mark()),
        "q": lambda machine: machine.put(machine.number(1)),
        "r": lambda machine: machine.put(machine.number(4)),
        "\x94": lambda machine: machine.put(len(machine.memo)),
        "h": _push(lambda machine: machine.memo[machine.number(1)]),
        "j": _push(lambda machine: machine.memo[machine.number(4)]),
        "c": _make(lambda machine: resolve(machine.line(), machine.line())),
        "\x93": _make(_stack_global),
        "R": _make(_call),
        "\x81": _make(_new_object),
        "b": _build,
        "Q": _make(lambda machine: storage(machine.stack.pop())),
    }.items()
}
