"""Settings: frozen pytree dataclasses whose fields have a range.

Everything that defines a run is a `Struct`. Fields declared by `field` are pytree leaves, so that
runs of equal structure stack along a leading axis and train as one program; fields declared by
`static_field` are part of the structure. What changes while a run trains is a `NamedTuple` instead.
"""

import contextlib
import dataclasses
import functools
import importlib
import math
import os
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import (
    Any,
    Generic,
    Self,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

import jax
import numpy as np
from flax.core import FrozenDict

TARGET = "_target_"  # in a configuration, the key of a class's import path, as Hydra has it

# Compiled programs compute in 32 bits, where larger numbers wrap around or become infinite.
MAX_INT = 2**31 - 1
MAX_FLOAT = float(np.finfo(np.float32).max)


class SettingError(ValueError):
    """A setting that cannot be used: one line with its key, its value and what is allowed.

    Args:
      key: the dotted key.
      value: the value.
      allowed: what is allowed, as a phrase: "must be ...".
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={brief(value)}: {allowed}")
        self.key, self._value, self._allowed = key, value, allowed

    def within(self, key: str) -> "SettingError":
        """Returns the error of a setting nested in that of another key."""
        return SettingError(f"{key}.{self.key}", self._value, self._allowed)


def brief(value: object, length: int = 200) -> str:
    """Returns the `repr` of a value on one line, cut to a length."""
    if isinstance(value, list | tuple) and len(value) > length:  # a long `repr` takes long
        value = value[:length]
    text = " ".join(repr(value).split())
    return text if len(text) <= length else f"{text[:length]}..."


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may have: bounds for numbers, or a set of choices.

    Attributes:
      kind: the type of the value; `Mapping` for keyword arguments.
      ge: the lower bound.
      gt: the lower bound, excluded.
      le: the upper bound.
      lt: the upper bound, excluded.
      choices: the allowed values, or a function that lists them; bounds do not count then.
      least: the least number of values, where the field is a sequence.
      most: the largest number of values then.
    """

    kind: type
    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf
    choices: tuple[Any, ...] | Callable[[], tuple[Any, ...]] = ()
    least: int = 0
    most: int = 10_000

    def __str__(self) -> str:
        if choices := self._choices():
            return "one of " + ", ".join(map(str, choices))
        noun = {
            int: "a whole number",
            float: "a finite number",
            bool: "true or false",
            Mapping: "arguments by name",
            object: "a value",
        }
        bounds = [
            f"{sign} {bound}"
            for sign, bound in ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
            if math.isfinite(bound)
        ]
        return " ".join(
            [noun.get(self.kind, f"a {self.kind.__name__}"), " and ".join(bounds)]
        ).strip()

    def __contains__(self, value: object) -> bool:
        if isinstance(value, np.generic):
            value = value.item()
        if choices := self._choices():
            return isinstance(value, Hashable) and value in choices
        if self.kind not in (int, float):
            return isinstance(value, self.kind)
        number = int if self.kind is int else int | float
        if isinstance(value, bool) or not isinstance(value, number):
            return False
        return self.ge <= value <= self.le and self.gt < value < self.lt and abs(value) < math.inf

    def _choices(self) -> tuple[Any, ...]:
        return self.choices() if callable(self.choices) else self.choices


def field(default: float | None = dataclasses.MISSING, **bounds: Any) -> Any:  # type: ignore[assignment]
    """Declares a number that is a pytree leaf: it is swept without a new compilation.

    Args:
      default: the default value; the field must be given if there is none. None if the number may
        be left out, which is another structure: there is no leaf then.
      **bounds: `ge`, `gt`, `le`, `lt`, and `kind=int` for whole numbers.
    """
    return dataclasses.field(
        default=default, metadata={"range": Range(**{"kind": float, **bounds})}
    )


def static_field(
    default: Any = dataclasses.MISSING,
    *,
    kind: type | None = None,
    kw_only: bool = False,
    **bounds: Any,
) -> Any:
    """Declares a value that is part of the pytree's structure: each value is another program.

    Args:
      default: the default value; a tuple for a sequence of values.
      kind: the type of the value, or of each element; that of the default if not given.
      kw_only: whether the field is keyword-only, as fields of a base class should be.
      **bounds: `ge`, `gt`, `le`, `lt`; or `choices`, a tuple or a function that lists them; and
        `least` and `most`, the least and the largest number of values of a sequence.
    """
    metadata: dict[str, Any] = {"static": True}
    sample = default[0] if isinstance(default, tuple) and default else default
    kind = kind or (None if sample is dataclasses.MISSING else type(sample))
    if kind is not None:
        metadata["range"] = Range(kind=kind, **bounds)
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


@dataclass_transform(frozen_default=True)
class Struct:
    """Base class of settings. A subclass becomes a frozen dataclass and a pytree.

    Fields declared by `field` and fields that are pytrees themselves are children; fields declared
    by `static_field` are structure.

    Subclasses mark by `abc.abstractmethod` what their own subclasses must define. No `ABCMeta`
    refuses an object without it: a configuration that names such a class is refused (see
    `abstract_methods`), and in Python the body of the method raises NotImplementedError.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(frozen=True)(cls)
        jax.tree_util.register_dataclass(cls)

    def __post_init__(self) -> None:
        for name, field in fields(self):
            value = getattr(self, name)
            plain = _plain(value, field)
            if plain is not value:
                object.__setattr__(self, name, plain)

    def replace(self, **changes: Any) -> Self:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


P = TypeVar("P", bound=Struct)


class Chain(Struct, Generic[P]):
    """Several objects of one kind that are applied in order, each under a name of its own.

    Attributes:
      parts: the objects.
      names: their names on the command line and in the results table.
    """

    parts: tuple[P, ...] = ()
    names: tuple[str, ...] = static_field((), kind=str)

    @classmethod
    def of(cls, *parts: P) -> Self:
        """Chains objects, each named after its class.

        Raises:
          SettingError: a part is not of the chain's kind, as a class in place of an object.
        """
        for number, part in enumerate(parts):
            check_kind(part, cls.part_kind(), f"parts[{number}]")
        return cls(parts, tuple(snake_case(type(part).__name__) for part in parts))

    @classmethod
    def part_kind(cls) -> type[P]:
        """Returns the base class of the parts."""
        for base in getattr(cls, "__orig_bases__", ()):
            if get_origin(base) is Chain and isinstance(get_args(base)[0], type):
                return get_args(base)[0]
        return Struct  # type: ignore[return-value]


def abstract_methods(kind: type) -> list[str]:
    """Returns the names of the methods that a class leaves to its subclasses, sorted."""
    return [
        name
        for name in dir(kind)
        if getattr(getattr(kind, name, None), "__isabstractmethod__", False)
    ]


def locate(path: str, key: str) -> Any:
    """Imports the object at the path `package.module.name`.

    Args:
      path: the import path.
      key: the key that it is the value of, for the error.

    Raises:
      SettingError: there is no such object.
      Exception: whatever the module raises while it is imported.
    """
    names = path.split(".") if isinstance(path, str) else []
    if len(names) < 2 or not all(name.isidentifier() for name in names):
        raise SettingError(key, path, "must be an import path, such as package.module.Name")
    module = ".".join(names[:-1])
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):
            raise  # the module exists, and fails to import another one
        raise SettingError(key, path, f"must be an import path ({error})") from error
    try:
        return getattr(imported, names[-1])
    except AttributeError as error:
        raise SettingError(key, path, f"must be an import path ({error})") from error


# Names whose capitals are not the beginnings of words.
_SPELLINGS = {
    "LeakyReLU": "LeakyRelu",
    "ReLU": "relu",
    "ReDo": "Redo",
    "InFeR": "Infer",
    "ReGraMa": "Regrama",
    "GraMa": "Grama",
    "RMS": "Rms",
}


def snake_case(name: str) -> str:
    """Returns `soft_shrink_perturb` for `SoftShrinkPerturb`, `crelu` for `CReLU`."""
    for spelling, word in _SPELLINGS.items():
        name = name.replace(spelling, word)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def fields(struct: Struct | type[Struct]) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Returns the fields of a Struct with their names, in the order declared."""
    return ((field.name, field) for field in dataclasses.fields(struct))  # type: ignore[arg-type]


def _plain(value: Any, field: dataclasses.Field[Any]) -> Any:
    """Converts a value to its field's type: lists to tuples, whole numbers to floats.

    Mappings in fields declared by `static_field` become hashable; None is an empty one.
    """
    if isinstance(value, Mapping) and field.metadata.get("static"):
        return _freeze(value)
    if value is None and isinstance(field.default, FrozenDict):
        return field.default
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        plain = tuple(_plain(element, field) for element in value)
        same = all(new is old for new, old in zip(plain, value, strict=True))
        return value if same and isinstance(value, tuple) else plain
    if isinstance(value, np.generic):
        value = value.item()
    allowed = field.metadata.get("range")
    if allowed is not None and allowed.kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if allowed is not None and allowed.kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):  # then `check` refuses it
            return float(value)
    return value


def _freeze(value: Any) -> Any:
    """Returns plain containers as hashable ones."""
    if isinstance(value, Mapping):
        return FrozenDict({name: _freeze(entry) for name, entry in value.items()})
    return tuple(map(_freeze, value)) if isinstance(value, list | tuple) else value


def thaw(value: Any) -> Any:
    """Returns the hashable containers of a setting as dicts and lists."""
    if isinstance(value, Mapping):
        return {name: thaw(entry) for name, entry in value.items()}
    return list(map(thaw, value)) if isinstance(value, list | tuple) else value


def check(struct: object, key: str = "") -> None:
    """Raises `SettingError` for the first setting, at any depth, that is outside its range.

    Args:
      struct: the settings.
      key: the dotted key of `struct` itself, which begins every key named in an error.
    """
    if isinstance(struct, Chain):
        parts, names = struct.parts, struct.names
        if not isinstance(parts, tuple):
            raise SettingError(_join(key, "parts"), parts, "must be a list")
        if not (isinstance(names, tuple) and all(isinstance(name, str) for name in names)):
            raise SettingError(_join(key, "names"), names, "must be a list of names")
        if len(names) != len(parts) or len(set(names)) < len(names):
            raise SettingError(key, names, "must have a different name for each part")
        for name, part in zip(names, parts, strict=True):
            check_kind(part, struct.part_kind(), _join(key, name))
            check(part, _join(key, name))
    elif isinstance(struct, Struct):
        hints = _type_hints(type(struct))  # type: ignore[arg-type]
        for name, field in fields(struct):
            value, path = getattr(struct, name), _join(key, name)
            allowed = field.metadata.get("range")
            if value is None and field.default is None:
                continue
            if allowed is None:
                kind = hints[name] if isinstance(hints[name], type) else Struct
                check_kind(value, kind, path)
                check(value, path)
                continue
            many = isinstance(field.default, tuple)
            if many and not (isinstance(value, tuple) and len(value) >= allowed.least):
                raise SettingError(
                    path, value, f"must be a list of at least {allowed.least}, each {allowed}"
                )
            if many and len(value) > allowed.most:
                raise SettingError(path, value, f"must be a list of at most {allowed.most}")
            for element in value if many else (value,):
                if element not in allowed:
                    raise SettingError(path, value, f"must be {'a list, each ' * many}{allowed}")
                if isinstance(element, int | float) and abs(element) > MAX_FLOAT:
                    raise SettingError(path, value, f"must be at most {MAX_FLOAT:.3g}, as float32")
                if isinstance(element, int) and abs(element) > MAX_INT:
                    raise SettingError(path, value, f"must be at most {MAX_INT}, as int32")


@functools.cache
def _type_hints(struct: type) -> dict[str, Any]:
    """Returns the types of a Struct's fields."""
    return get_type_hints(struct)


def check_kind(value: object, kind: type, key: str) -> None:
    """Raises `SettingError` unless a value is an object of a kind."""
    if isinstance(value, kind):
        return
    allowed = f"must be of the kind {kind.__name__}"
    if isinstance(value, type):
        allowed += ": an object and not a class" + (
            f", as {value.__name__}()" if issubclass(value, kind) else ""
        )
    raise SettingError(key, value, allowed)


def to_config(struct: Struct, among: Sequence[Struct] = ()) -> dict[str, Any]:
    """Returns settings as plain containers, which `plasticity.from_config` reads back.

    Args:
      struct: the settings.
      among: settings of equal structure; a setting in which they differ is given as a list.
    """
    if isinstance(struct, Chain):
        others = [other.parts for other in among if isinstance(other, Chain)]
        return {
            name: to_config(part, [parts[i] for parts in others])
            for i, (name, part) in enumerate(zip(struct.names, struct.parts, strict=True))
        }
    kind = type(struct)
    plain: dict[str, Any] = {TARGET: f"{kind.__module__}.{kind.__qualname__}"}
    for name, _ in fields(struct):
        value, values = getattr(struct, name), [getattr(other, name) for other in among]
        if isinstance(value, Struct):
            plain[name] = to_config(value, values)
        elif any(other != value for other in values):
            plain[name] = values
        else:
            # In YAML, Hydra replaces null by arguments, but merges no names into a mapping.
            plain[name] = None if isinstance(value, FrozenDict) and not value else thaw(value)
    return plain


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
