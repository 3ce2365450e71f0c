"""Read the pickle inside a checkpoint as data: nothing that it names is imported or called.

A pickle is a small program. :class:`DataMachine` carries out the few instructions that torch's
files consist of, with the arguments as ``pickletools`` reads them. Where a pickle names
a class or a function, :mod:`.stand_ins` has a function of ours for it.
"""

from __future__ import annotations

import pickletools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from .stand_ins import (
    HISTORY,
    INTERNAL,
    NAMES,
    NOT_PLAIN,
    Arguments,
    ForeignNameError,
    NotPlainError,
    PickleError,
    StandIn,
    Storage,
    Unfilled,
    check_content,
    check_key,
    fill_dtype,
    fill_ordered_dict,
    make_history,
    rebuild_tensor,
)

MAX_BITS = 128  # of an integer; torch's own mark of an old file has 77
# What a pickle may make of each of its bytes, in bytes of memory, and what is made takes, measured
# at its peak. A tensor without axes has 58 bytes or more in the pickle, and pays 68 for each.
PER_BYTE, FREE = 80, 2**20
PER_TENSOR = 1000  # or storage, or history
PER_CALL, PER_CONTAINER, PER_MARK, PER_NUMBER = 320, 272, 40, 48
PER_ENTRY = 100  # of a dictionary, which grows by copying
PER_TUPLE = 72  # more than it takes: one in two bytes is in no honest file, and is refused
PER_ITEM = 24  # the place on the stack, in the tuple taken from there, and in the container

OPCODES = {opcode.code.encode('latin-1'): opcode for opcode in pickletools.opcodes}


def read_pickle(
    file: BinaryIO, size: int, find_storage: Callable[[Any], Storage] | None = None
) -> Any:
    """Read one pickle of protocol 2 as data, and leave ``file`` behind its end.

    Args:
        file: Opened in binary mode.
        size: Bytes that the pickle has at most; what it makes is in proportion to them.
        find_storage: Makes the storage of a tensor out of the persistent id that names it.

    Returns:
        Numbers, strings, bytes, lists, tuples, dictionaries, sets, tensors, NumPy arrays and
        scalars, and mmengine's histories, as deep in each other as they come.

    Raises:
        ForeignNameError: It wants more than data.
        NotPlainError: It holds sparse, quantized or other such tensors.
        PickleError: It is damaged, or not of protocol 2.
    """
    machine = DataMachine(PER_BYTE * size + FREE, find_storage)
    while (code := file.read(1)) != b'.':
        opcode = OPCODES.get(code)
        if opcode is None or opcode.name not in machine.instructions:
            name = opcode.name if opcode else repr(code)
            raise PickleError(f'{name} is none of the instructions that torch writes')
        argument = opcode.arg.reader(file) if opcode.arg else None
        machine.instructions[opcode.name](argument)
    if len(machine.stack) != 1 or machine.marks:
        raise PickleError('it ends too early')
    check_content(machine.stack[0])
    return machine.stack[0]


class DataMachine:
    """The stack, the marks in it and the memo of a pickle that is being read."""

    def __init__(self, budget: int, find_storage: Callable[[Any], Storage] | None):
        self.budget = budget
        self.find_storage = find_storage
        self.stack: list = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        numbers = dict.fromkeys(('BININT', 'BININT1', 'BININT2', 'BINFLOAT'), self.push_number)
        self.instructions: dict[str, Callable[[Any], None]] = {
            **numbers,
            'PROTO': self.check_protocol,
            'LONG1': self.push_integer,
            'BINUNICODE': self.push_text,
            'SHORT_BINSTRING': self.push_text,
            'NONE': lambda _: self.push(None),
            'NEWTRUE': lambda _: self.push(True),
            'NEWFALSE': lambda _: self.push(False),
            'EMPTY_TUPLE': lambda _: self.push(()),
            'EMPTY_LIST': lambda _: self.push_container([]),
            'EMPTY_DICT': lambda _: self.push_container({}),
            'TUPLE1': lambda _: self.push_tuple(self.take(1)),
            'TUPLE2': lambda _: self.push_tuple(self.take(2)),
            'TUPLE3': lambda _: self.push_tuple(self.take(3)),
            'TUPLE': lambda _: self.push_tuple(self.take_to_mark()),
            'MARK': self.mark,
            'APPEND': lambda _: self.append(self.take(1)),
            'APPENDS': lambda _: self.append(self.take_to_mark()),
            'SETITEM': lambda _: self.set_items(self.take(2)),
            'SETITEMS': lambda _: self.set_items(self.take_to_mark()),
            'GLOBAL': self.look_up,
            'REDUCE': self.call,
            'NEWOBJ': self.new_object,
            'BUILD': self.fill,
            'BINPERSID': self.load_storage,
            'BINPUT': self.remember,
            'LONG_BINPUT': self.remember,
            'BINGET': self.recall,
            'LONG_BINGET': self.recall,
        }

    def pop(self) -> Any:
        return self.take(1)[0]

    def take(self, count: int) -> tuple:
        start = len(self.stack) - count
        if start < (self.marks[-1] if self.marks else 0):
            raise PickleError('an instruction without its operands')
        taken = tuple(self.stack[start:])
        del self.stack[start:]
        return taken

    def take_to_mark(self) -> tuple:
        if not self.marks:
            raise PickleError('an instruction without its operands')
        return self.take(len(self.stack) - self.marks.pop())

    def top(self) -> Any:
        self.stack.append(self.pop())
        return self.stack[-1]

    def check_protocol(self, version: int) -> None:
        if version != 2:
            raise PickleError(f'it is of protocol {version}, where torch.save writes 2')

    def push(self, value: Any, cost: int = 0) -> None:
        self.pay(PER_ITEM + cost)
        self.stack.append(value)

    def push_number(self, value: float) -> None:
        is_shared = type(value) is int and 0 <= value < 256  # by all of Python
        self.push(value, 0 if is_shared else PER_NUMBER)

    def push_integer(self, value: int) -> None:
        if value.bit_length() > MAX_BITS:
            raise PickleError('an integer of too many digits')
        self.push_number(value)

    def push_text(self, text: str) -> None:
        self.push(text, sys.getsizeof(text))

    def mark(self, _) -> None:
        self.pay(PER_MARK)
        self.marks.append(len(self.stack))

    def pay(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise PickleError('it makes much more than it holds')

    def charge(self, values) -> None:
        """Pay for what a stand-in copies: the memo could give it the same values without end."""
        if not isinstance(values, (list, tuple, dict)):
            values = ()
        self.pay(PER_CALL + PER_ITEM * len(values))
        for value in values.values() if isinstance(values, dict) else values:
            if isinstance(value, (str, bytes)):
                self.pay(len(value))
            elif isinstance(value, dict):  # of versions, each of which is copied
                self.pay((PER_CONTAINER + 2 * PER_ENTRY) * len(value))
            elif isinstance(value, (list, set)):
                self.pay(PER_ENTRY * len(value))
            elif isinstance(value, tuple):
                self.pay(PER_ITEM * len(value))

    def push_container(self, value) -> None:
        self.push(value, PER_CONTAINER)

    def push_tuple(self, values: tuple) -> None:
        internal = any(isinstance(value, INTERNAL) for value in values)
        values = Arguments(values) if internal else values
        self.push(values, sys.getsizeof(values) + PER_TUPLE)

    def append(self, values: tuple) -> None:
        target = self.top()
        if type(target) is not list:
            raise PickleError(f'values appended to {type(target).__name__}')
        for value in values:
            check_content(value)
            target.append(value)

    def set_items(self, pairs: tuple) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedDict) or len(pairs) % 2:
            raise PickleError(f'items set in {type(target).__name__}')
        # An OrderedDict has a list of its own beside the table.
        self.pay(PER_ENTRY * (len(pairs) if type(target) is OrderedDict else len(pairs) // 2))
        for key, value in zip(pairs[::2], pairs[1::2]):
            check_key(key, len(target))
            check_content(value)
            target[key] = value

    def look_up(self, words: str) -> None:
        name = '.'.join(words.split(' ', 1))  # module and name
        if name in NOT_PLAIN:
            raise NotPlainError(NOT_PLAIN[name])
        if name not in NAMES:
            raise ForeignNameError(f'it asks for {ascii(name)[1:-1][:200]}')
        self.push(NAMES[name])

    def call(self, _) -> None:
        function, arguments = self.take(2)
        if type(function) is not StandIn or type(arguments) not in (tuple, Arguments):
            raise ForeignNameError(f'it calls {type(function).__name__}')
        self.charge(arguments)
        if function.make is rebuild_tensor:
            self.pay(PER_TENSOR - PER_CALL)
        try:
            result = function.make(*arguments)
        except TypeError as error:  # another number of arguments
            raise PickleError(f'{function.name}: {error}') from error
        self.stack.append(result)

    def new_object(self, _) -> None:
        kind, arguments = self.take(2)
        if kind is not HISTORY or arguments != ():
            raise ForeignNameError(f'it makes an object of {type(kind).__name__}')
        self.push(make_history(), PER_TENSOR)

    def fill(self, _) -> None:
        target, state = self.take(2)
        self.charge(state)
        if type(target) is Unfilled:
            filled = target.fill(state)
            for place in target.places:
                self.memo[place] = filled
        elif isinstance(target, np.dtype):
            filled = fill_dtype(target, state)
        elif type(target) is OrderedDict:
            filled = fill_ordered_dict(target, state)
        else:
            raise ForeignNameError(f'it sets the state of {type(target).__name__}')
        self.stack.append(filled)

    def load_storage(self, _) -> None:
        name = self.pop()
        if self.find_storage is None:
            raise PickleError('a tensor where there is none')
        self.push(self.find_storage(name), PER_TENSOR)

    def remember(self, place: int) -> None:
        value = self.top()
        if type(value) is Unfilled:
            value.places.append(place)
        if place not in self.memo:
            self.pay(PER_ENTRY + PER_NUMBER)
        self.memo[place] = value

    def recall(self, place: int) -> None:
        if place not in self.memo or type(self.memo[place]) is Unfilled:
            raise PickleError('a reference to what is not there yet')
        self.push(self.memo[place])
