"""An interpreter of Python pickles that executes nothing.

Opcodes are taken apart by `pickletools`, which looks but does not act. What they build are containers, texts
and numbers; every name of a class or function is put before a `Vocabulary`, the only place that makes other
things of it. Budgets bound the work and the memory that a small file can ask for.
"""

import dataclasses
import io
import pickletools
from collections.abc import Callable
from typing import Any, Protocol

MAX_OPCODES = 300_000  # in all; the released PV3D with its optimizers and EG3D need about 60 thousand
MAX_DEPTH = 200  # containers inside each other
_AMPLIFICATION = (
    8  # bytes of arrays that a byte of the file may stand for: views of one storage, copies of texts
)
_MAX_BITS = 1024  # of an integer: hashing and printing long ones takes long
_MAX_KEY = 2**60  # an integer below is its own hash: others can be made to collide, which takes long
_MAX_PARTS = 16  # of a tuple that is a key
_MAX_NAME = 256  # characters of a module, class or function
_MARK = object()
_SCALARS = (str, int, float, bool, bytes, type(None))


class RefusedError(ValueError):
    """A pickle that is damaged, or asks for more than plain data; the message says which."""


@dataclasses.dataclass(frozen=True)
class Name:
    """A class or function that a pickle mentions; never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return ascii(f'{self.module}.{self.name}')[1:-1]  # one line whatever the file says


@dataclasses.dataclass(eq=False, repr=False)
class Placeholder:
    """Stands for an object of a foreign class: what it was called with, and what was put into it."""

    cls: Name
    args: tuple[Any, ...] = ()
    state: Any = None
    items: dict[Any, Any] = dataclasses.field(default_factory=dict)
    elements: list[Any] = dataclasses.field(default_factory=list)


class Budget:
    """What is left of the work and memory that a file may cost; shared by the pickles inside a file."""

    def __init__(self, file_bytes: int) -> None:
        self.opcodes = MAX_OPCODES
        self.bytes = _AMPLIFICATION * file_bytes + 2**20

    def step(self) -> None:
        """Counts an opcode."""
        self.opcodes -= 1
        if self.opcodes < 0:
            raise RefusedError(f'it has more than {MAX_OPCODES} instructions')

    def spend(self, count: int) -> None:
        """Counts `count` bytes of arrays or texts."""
        if count < 0 or count > self.bytes:
            raise RefusedError('it declares more data than a file of its size can hold')
        self.bytes -= count


class Vocabulary(Protocol):
    """What names, calls and references in a pickle mean."""

    def find(self, name: Name) -> Any:
        """Returns what stands for a name; raises RefusedError for one that has no business there."""

    def call(self, function: Any, args: tuple[Any, ...]) -> Any:
        """Returns what a call makes, or a new object of a class."""

    def restore(self, thing: Any, state: Any) -> None:
        """Puts a state into an object."""

    def fetch(self, reference: Any) -> Any:
        """Returns what a persistent reference means."""


def read_pickle(stream: io.BytesIO, vocabulary: Vocabulary, budget: Budget) -> Any:
    """Reads one pickle from where the stream stands, and leaves it behind its end.

    Raises:
        RefusedError: if the pickle is damaged, beyond the budget, nested too deeply, or refused by the
        vocabulary.
    """
    machine = _Machine(vocabulary)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            budget.step()
            machine.run(opcode.name, argument)
    except RefusedError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError) as err:
        first = (str(err).splitlines() or [''])[0]
        raise RefusedError(f'it is damaged ({type(err).__name__}: {ascii(first)[:80]})') from err
    finally:
        left = machine.close()
    if len(left) != 1 or left[0] is _MARK:
        raise RefusedError('it is damaged (its end leaves no single value)')
    check_depth(left[0])
    return left[0]


def check_depth(value: Any) -> None:
    """Raises RefusedError if plain containers are nested too deeply or contain themselves.

    Placeholders are not looked into: foreign objects may well refer to each other in circles.
    """
    depths: dict[int, int] = {}
    path: set[int] = set()
    todo = [(value, False)]
    while todo:
        node, done = todo.pop()
        if not done and id(node) in depths:  # before its children are listed: many may refer to a long list
            continue
        children = _children(node)
        if done:
            path.discard(id(node))
            depths[id(node)] = 1 + max((depths.get(id(c), 0) for c in children), default=0)
            if depths[id(node)] > MAX_DEPTH:
                raise RefusedError(f'it is nested more than {MAX_DEPTH} levels deep')
        elif id(node) in path:
            raise RefusedError('it contains itself')
        elif children:
            path.add(id(node))
            todo.append((node, True))
            todo += [(c, False) for c in children if isinstance(c, (dict, list, tuple))]


def _children(node: Any) -> list[Any]:
    if isinstance(node, dict):
        return list(node.values())
    return list(node) if isinstance(node, (list, tuple)) else []


class _Machine:
    """The stack and the memo of a pickle; one method for each kind of opcode."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.actions: dict[str, Callable[[], None]] = {
            'MARK': lambda: self.stack.append(_MARK),
            'POP': lambda: self._drop(),
            'POP_MARK': lambda: self._forget(),
            'DUP': lambda: self.stack.append(self._top()),
            'NONE': lambda: self.stack.append(None),
            'NEWTRUE': lambda: self.stack.append(True),
            'NEWFALSE': lambda: self.stack.append(False),
            'EMPTY_LIST': lambda: self.stack.append([]),
            'EMPTY_TUPLE': lambda: self.stack.append(()),
            'EMPTY_DICT': lambda: self.stack.append({}),
            'EMPTY_SET': lambda: self.stack.append(set()),
            'LIST': lambda: self.stack.append(self._marked()),
            'TUPLE': lambda: self.stack.append(tuple(self._marked())),
            'TUPLE1': lambda: self._tuple(1),
            'TUPLE2': lambda: self._tuple(2),
            'TUPLE3': lambda: self._tuple(3),
            'DICT': lambda: self.stack.append(_pairs(self._marked())),
            'FROZENSET': lambda: self.stack.append(frozenset(map(_key, self._marked()))),
            'APPEND': lambda: self._extend([self._pop()]),
            'APPENDS': lambda: self._extend(self._marked()),
            'ADDITEMS': lambda: self._add(self._marked()),
            'SETITEM': lambda: self._update([self._pop(), self._pop()][::-1]),
            'SETITEMS': lambda: self._update(self._marked()),
            'MEMOIZE': lambda: self._put(len(self.memo)),
            'STACK_GLOBAL': lambda: self._stack_global(),
            'REDUCE': lambda: self._call(2),
            'NEWOBJ': lambda: self._call(2),
            'NEWOBJ_EX': lambda: self._call(3),
            'OBJ': lambda: self._object(),
            'BUILD': lambda: self._build(),
            'BINPERSID': lambda: self.stack.append(self.vocabulary.fetch(self._pop())),
            'PROTO': lambda: None,
            'FRAME': lambda: None,
            'STOP': lambda: None,
        }
        self.valued: dict[str, Callable[[Any], None]] = {
            'GLOBAL': self._global,
            'PERSID': lambda value: self.stack.append(self.vocabulary.fetch(value)),
            **dict.fromkeys(('PUT', 'BINPUT', 'LONG_BINPUT'), self._put),
            **dict.fromkeys(('GET', 'BINGET', 'LONG_BINGET'), lambda i: self.stack.append(self.memo[i])),
            **dict.fromkeys(_NUMBERS, self._number),
            **dict.fromkeys(_TEXTS, self.stack.append),
        }

    def run(self, opcode: str, argument: Any) -> None:
        """Carries out an opcode."""
        if opcode in self.actions:
            self.actions[opcode]()
        elif opcode in self.valued:
            self.valued[opcode](argument)
        else:  # INST, the registry of extensions, buffers from outside the file
            raise RefusedError(f'it uses the instruction {opcode}, which no such file needs')

    def close(self) -> list[Any]:
        """Returns what is left on the stack, and lets go of everything else at once."""
        left, self.stack = self.stack, []
        self.memo.clear()
        self.actions.clear()  # these refer back to the machine
        self.valued.clear()
        return left

    def _number(self, value: float) -> None:
        if isinstance(value, int) and value.bit_length() > _MAX_BITS:
            raise RefusedError(f'it has a number of {value.bit_length()} bits')
        self.stack.append(value)

    def _drop(self) -> None:
        self.stack.pop()

    def _forget(self) -> None:
        self._marked()

    def _pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise RefusedError('it is damaged (a value is missing)')
        return value

    def _top(self) -> Any:
        if self.stack[-1] is _MARK:
            raise RefusedError('it is damaged (a value is missing)')
        return self.stack[-1]

    def _marked(self) -> list[Any]:
        """Removes the values above the last mark, and the mark."""
        for i in range(len(self.stack) - 1, -1, -1):
            if self.stack[i] is _MARK:
                values = self.stack[i + 1 :]
                del self.stack[i:]
                return values
        raise RefusedError('it is damaged (a mark is missing)')

    def _tuple(self, count: int) -> None:
        self.stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def _put(self, index: int) -> None:
        if not 0 <= index < _MAX_KEY:
            raise RefusedError('it is damaged (an impossible number of a value)')
        self.memo[index] = self._top()

    def _extend(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, (list, Placeholder)):
            raise RefusedError('it is damaged (an element for what is no list)')
        (target if isinstance(target, list) else target.elements).extend(values)

    def _add(self, values: list[Any]) -> None:
        if not isinstance(self._top(), set):
            raise RefusedError('it is damaged (an element for what is no set)')
        self._top().update(map(_key, values))

    def _update(self, values: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, (dict, Placeholder)):
            raise RefusedError('it is damaged (an item for what is no dictionary)')
        (target if isinstance(target, dict) else target.items).update(_pairs(values))

    def _global(self, argument: str) -> None:
        module, _, name = argument.partition(' ')
        self._name(module, name)

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedError('it is damaged (a name that is no text)')
        self._name(module, name)

    def _name(self, module: str, name: str) -> None:
        if max(len(module), len(name)) > _MAX_NAME:
            raise RefusedError(f'it has a name of more than {_MAX_NAME} characters')
        self.stack.append(self.vocabulary.find(Name(module, name)))

    def _call(self, count: int) -> None:
        function, args, *keywords = [self._pop() for _ in range(count)][::-1]
        if not isinstance(args, tuple) or any(keywords):
            raise RefusedError('it is damaged, or calls something by keywords')
        self.stack.append(self.vocabulary.call(function, args))

    def _object(self) -> None:
        cls, *args = self._marked()
        self.stack.append(self.vocabulary.call(cls, tuple(args)))

    def _build(self) -> None:
        state = self._pop()
        self.vocabulary.restore(self._top(), state)


_NUMBERS = ('INT', 'BININT', 'BININT1', 'BININT2', 'LONG', 'LONG1', 'LONG4', 'FLOAT', 'BINFLOAT')
_TEXTS = (
    *('STRING', 'BINSTRING', 'SHORT_BINSTRING', 'UNICODE', 'SHORT_BINUNICODE', 'BINUNICODE', 'BINUNICODE8'),
    *('BINBYTES', 'SHORT_BINBYTES', 'BINBYTES8', 'BYTEARRAY8'),
)


def _key(value: Any) -> Any:
    """Lets plain keys pass; of others, deep or chosen ones, the hash could overflow the stack or collide.

    Short tuples of texts, whose hashes nobody can choose, are keys of omegaconf.
    """
    if isinstance(value, tuple) and len(value) <= _MAX_PARTS and all(isinstance(v, str) for v in value):
        return value
    if not isinstance(value, (*_SCALARS, Name)) or (isinstance(value, int) and abs(value) >= _MAX_KEY):
        raise RefusedError(f'it uses a {type(value).__name__} as the key of a dictionary')
    return value


def _pairs(values: list[Any]) -> dict[Any, Any]:
    if len(values) % 2:
        raise RefusedError('it is damaged (a key without a value)')
    return {_key(k): v for k, v in zip(values[::2], values[1::2], strict=True)}
