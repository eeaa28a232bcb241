"""Plug-ins: parts of a user's own, and the text by which settings keep them.

A part is given as an object, as ``module:object``, or by the name of an entry point that another package declares.
Entry points are looked up only for a name that is not built in. Of a class with parameters, the text says them:
``module:Class(power=2)``.
"""

import ast
import importlib
import inspect
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from importlib import metadata
from itertools import count
from typing import Any, NamedTuple

from dal.errors import InputError, SettingsError


class Slot(NamedTuple):
    """A place for a part of a user's own.

    Attributes
    ----------
    setting : str
        What errors call it.
    group : str or None
        The group of entry points; None where there is none.
    names : tuple of str
        The parts that are built in.
    error : type
        What is raised where a part cannot be found.
    """

    setting: str
    group: str | None
    names: tuple[str, ...] = ()
    error: type[InputError] = SettingsError


class Unnameable(SettingsError):
    """An object that no text can name: it cannot be kept in settings, nor found by another process."""


_LENT: dict[str, object] = {}
_numbers = count(1)


@contextmanager
def lent(part: object) -> Iterator[str]:
    """Name a part that no import finds, such as a lambda, in this process and until the block ends."""
    text = f"<{getattr(part, '__qualname__', type(part).__qualname__)} {next(_numbers)}>"
    _LENT[text] = part
    try:
        yield text
    finally:
        del _LENT[text]


def installed(group: str) -> dict[str, str]:
    """Return the entry points of a group: the ``module:object`` of each name.

    Raises
    ------
    SettingsError
        If two packages declare one name for different objects.
    """
    found: dict[str, str] = {}
    for each in metadata.entry_points(group=group):
        if found.setdefault(each.name, each.value) != each.value:
            raise SettingsError(
                f"`{each.name}` must be one plug-in of {group}, got {found[each.name]} and {each.value}; name one of"
                " these, or uninstall a package."
            )
    return found


def find(text: str, slot: Slot) -> Any:  # noqa: ANN401 - what a part is, its slot decides
    """Return the part that a text names.

    Parameters
    ----------
    text : str
        ``module:object`` or the name of an entry point; with parameters, as ``module:Class(power=2)``, the object is
        called with them. A class without parameters is returned as it is.
    slot : Slot

    Raises
    ------
    InputError
        If there is no such part; the message lists what there is and why this is none.

    Examples
    --------
    >>> find("fractions:Fraction(numerator=3, denominator=4)", Slot("part", None))
    Fraction(3, 4)
    """
    if text in _LENT:
        return _LENT[text]
    base, parameters = _parsed(text, slot)
    names = {} if ":" in base or slot.group is None else installed(slot.group)
    found = _imported(names.get(base, base), text, slot, names)
    if parameters is None:
        return found
    try:
        return found(**parameters)
    except Exception as error:  # anybody's code
        raise _refused(text, slot, f"{base} refuses these parameters: {error}") from error


def _parsed(text: str, slot: Slot) -> tuple[str, dict[str, object] | None]:
    base, opening, _ = text.partition("(")
    if not opening:
        return text, None
    try:
        call = ast.parse(f"_{text[len(base) :]}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError("parameters are given by name")
        return base, {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
    except (SyntaxError, ValueError) as error:
        raise _refused(text, slot, f"its parameters cannot be read: {error}") from error


def _imported(path: str, text: str, slot: Slot, names: dict[str, str]) -> Any:  # noqa: ANN401 - see find
    module, colon, attribute = path.partition(":")
    if not colon:
        raise _refused(text, slot, "there is no such name", names)
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:  # an import runs anybody's code
        raise _refused(text, slot, f"{type(error).__name__}: {error}") from error
    return found


def _refused(text: str, slot: Slot, cause: str, names: dict[str, str] | None = None) -> InputError:
    ways = "`module:object`" if slot.group is None else f"`module:object` or an installed plug-in ({slot.group})"
    there = ", ".join((*slot.names, *sorted(names or ())))
    return slot.error(f"`{slot.setting}` must be {f'one of {there}, ' * bool(there)}{ways}, got {text!r}; {cause}.")


def text_of(part: object, slot: Slot) -> str:
    """Return the text that names an object, with its parameters: :func:`find` makes an equal one of it.

    Parameters
    ----------
    part : object
        A function or class of a module, or an instance that keeps each parameter of its class as an attribute of that
        name, as a dataclass and an estimator do. Parameters are numbers, texts, None, or tuples, lists and mappings of
        these.
    slot : Slot

    Raises
    ------
    Unnameable
        If no text can name it; the message says why.

    Examples
    --------
    >>> from fractions import Fraction
    >>> text_of(Fraction, Slot("part", None))
    'fractions:Fraction'
    """
    for text, each in _LENT.items():
        if each is part:
            return text
    is_plain = isinstance(part, type) or inspect.isroutine(part)
    kind: Any = part if is_plain else type(part)
    base = f"{kind.__module__}:{kind.__qualname__}"
    if why := _hidden(kind):
        raise _unnameable(slot, base, why)
    if is_plain:
        return base
    said = ", ".join(f"{name}={value!r}" for name, value in _parameters(part, base, slot).items())
    return f"{base}({said})" if said else base


def _hidden(kind: Any) -> str:  # noqa: ANN401 - a class or a function
    """Return why an import does not find a class or function; empty if it does."""
    if kind.__module__ == "__main__":
        return "it is defined in the script that runs, which no other process imports"
    if "<" in kind.__qualname__:
        return "it is a lambda, or defined inside a function"
    try:
        found: Any = importlib.import_module(kind.__module__)
        for part in kind.__qualname__.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        return f"it cannot be imported ({error})"
    return "" if found is kind else "another object is found there"


def _parameters(part: object, base: str, slot: Slot) -> dict[str, object]:
    found = {}
    for name in parameter_names(type(part)):
        if not hasattr(part, name):
            raise _unnameable(slot, base, f"it does not keep its parameter {name} as an attribute of that name")
        value = getattr(part, name)
        try:
            plain = ast.literal_eval(repr(value)) == value
        except (ValueError, SyntaxError):
            plain = False
        if not plain:
            raise _unnameable(slot, base, f"its parameter {name} is {value!r}, which is no plain value")
        found[name] = value
    return found


def parameter_names(kind: Callable[..., object]) -> list[str]:
    """Return the names of the parameters that a class or function takes; none where it does not tell them."""
    try:
        return list(inspect.signature(kind).parameters)
    except (ValueError, TypeError):  # some classes of C
        return []


def _unnameable(slot: Slot, base: str, why: str) -> Unnameable:
    return Unnameable(
        f"`{slot.setting}` must be a function or class of a module, which settings and other processes find by name,"
        f" got {base}: {why}; move it to the top of a module."
    )


def label_of(part: object, slot: Slot) -> str:
    """Return the text that names an object, or, where no text can, a description of it for people."""
    try:
        return text_of(part, slot)
    except Unnameable:
        return str(getattr(part, "__qualname__", repr(part)))


class Carried:
    """A part and its name, as they travel to other processes: the part is unpacked when it is first used.

    Two are equal if their names are.

    Raises
    ------
    SettingsError
        By `part`, in a process that cannot import it.
    """

    def __init__(self, name: str, packed: bytes = b"") -> None:
        self.name = name
        self._packed = packed

    @classmethod
    def of(cls, part: object, slot: Slot) -> "Carried":
        """Return a part with the text that names it."""
        carried = cls(label_of(part, slot))
        carried.__dict__["part"] = part
        return carried

    @cached_property
    def part(self) -> Any:  # noqa: ANN401 - anybody's object
        """The part itself."""
        try:
            return pickle.loads(self._packed)
        except Exception as error:  # an import runs anybody's code
            raise SettingsError(
                f"`{self.name}` must be importable in every process that uses it, got {type(error).__name__}: {error};"
                " install its module there."
            ) from error

    def __reduce__(self) -> tuple[type["Carried"], tuple[str, bytes]]:
        import cloudpickle  # by value where no other process can import the part, as in a notebook

        return Carried, (self.name, self._packed or cloudpickle.dumps(self.part))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Carried) and self.name == other.name

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"own {self.name}"
