"""What a setting is: frozen pytree dataclasses whose fields know their own range.

Everything that defines a run is a `Struct`. Its numeric fields are pytree leaves, so that runs of
equal structure stack along a leading axis and train as one program; fields marked `static_field`
shape that program and are part of the structure. Everything that *changes* while a run trains
is a plain `NamedTuple` instead.
"""

import contextlib
import dataclasses
import importlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, Self, TypeVar, dataclass_transform, get_type_hints

import jax
import numpy as np

TARGET = "_target_"  # in a configuration, the key of a class's import path, as Hydra has it


class SettingError(ValueError):
    """A setting that cannot be used: one line with its key, its value and what is allowed."""

    def __init__(self, key: str, value: object, allowed: str) -> None:
        super().__init__(f"{key}={value!r}: {allowed}")
        self.key, self._value, self._allowed = key, value, allowed

    def within(self, key: str) -> "SettingError":
        """The same of a setting within that of another key."""
        return SettingError(f"{key}.{self.key}", self._value, self._allowed)


@dataclasses.dataclass(frozen=True)
class Range:
    """The values that a field may take: bounds for numbers, or a set of choices."""

    kind: type
    ge: float = -math.inf
    gt: float = -math.inf
    le: float = math.inf
    lt: float = math.inf
    choices: tuple[Any, ...] | Callable[[], tuple[Any, ...]] = ()
    least: int = 0  # how many of them there must be, where there may be many

    def __str__(self) -> str:
        if choices := self._choices():
            return "one of " + ", ".join(map(str, choices))
        noun = {int: "a whole number", float: "a finite number", bool: "true or false"}
        bounds = [
            f"{sign} {bound}"
            for sign, bound in ((">=", self.ge), (">", self.gt), ("<=", self.le), ("<", self.lt))
            if math.isfinite(bound)
        ]
        return " ".join(
            [noun.get(self.kind, f"a {self.kind.__name__}"), " and ".join(bounds)]
        ).strip()

    def __contains__(self, value: object) -> bool:
        if choices := self._choices():
            return value in choices
        if self.kind not in (int, float):
            return isinstance(value, self.kind)
        if isinstance(value, bool) or not isinstance(value, self.kind):
            return False
        return self.ge <= value <= self.le and self.gt < value < self.lt and abs(value) < math.inf

    def _choices(self) -> tuple[Any, ...]:
        return self.choices() if callable(self.choices) else self.choices


def field(default: float = dataclasses.MISSING, **bounds: Any) -> Any:  # type: ignore[assignment]
    """A number that arithmetic can absorb: a pytree leaf, swept without a new compilation.

    Args:
      default: its value unless one is given.
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
    """A value that shapes the program: part of the pytree's structure, not a leaf.

    Args:
      default: its value unless one is given; a tuple stands for a sequence of such values.
      kind: the type of the value, or of each element; that of the default if not given.
      kw_only: whether it is given by name alone, as what a base class declares for all should.
      **bounds: `ge`, `gt`, `le`, `lt`; or `choices`, a tuple, or a function that lists them; and
        `least`, how many values a sequence must have.
    """
    metadata: dict[str, Any] = {"static": True}
    sample = default[0] if isinstance(default, tuple) and default else default
    kind = kind or (None if sample is dataclasses.MISSING else type(sample))
    if kind is not None:
        metadata["range"] = Range(kind=kind, **bounds)
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


@dataclass_transform(frozen_default=True)
class Struct:
    """Base of everything that defines a run. A subclass becomes a frozen dataclass and a pytree.

    Fields declared by `field` and fields that hold other pytrees are leaves; fields declared
    by `static_field` are structure.
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
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]


P = TypeVar("P", bound=Struct)


class Chain(Struct, Generic[P]):
    """Several specs of a kind that act in the order given, each under a name of its own.

    Attributes:
      parts: the specs.
      names: a name for each, by which it is set on the command line and called in the table.
    """

    parts: tuple[P, ...] = ()
    names: tuple[str, ...] = static_field((), kind=str)

    @classmethod
    def of(cls, *parts: P) -> Self:
        """The parts, each named after its class."""
        return cls(parts, tuple(snake_case(type(part).__name__) for part in parts))


def locate(path: str, key: str) -> Any:
    """What the import path `package.module.Name` names.

    Raises:
      SettingError: naming `key`, if there is no such thing.
    """
    try:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
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
    """`SoftShrinkPerturb` -> `soft_shrink_perturb`, `CReLU` -> `crelu`, `ReDo` -> `redo`."""
    for spelling, word in _SPELLINGS.items():
        name = name.replace(spelling, word)
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def fields(spec: Struct | type[Struct]) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """The fields of a Spec by name, in the order declared."""
    return ((field.name, field) for field in dataclasses.fields(spec))  # type: ignore[arg-type]


def _plain(value: Any, field: dataclasses.Field[Any]) -> Any:
    """The value as its field wants it: tuples for lists, floats for whole numbers."""
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        plain = tuple(_plain(element, field) for element in value)
        same = all(new is old for new, old in zip(plain, value, strict=True))
        return value if same and isinstance(value, tuple) else plain
    if isinstance(value, np.generic):
        value = value.item()
    allowed = field.metadata.get("range")
    if allowed is not None and allowed.kind is float and type(value) is int:
        with contextlib.suppress(OverflowError):  # then `check` refuses it
            return float(value)
    return value


def check(spec: object, key: str = "") -> None:
    """Raises `SettingError` for the first setting in `spec`, at any depth, outside its range.

    Args:
      spec: a Spec.
      key: the dotted path of `spec` itself, which begins every key named in an error.
    """
    if isinstance(spec, Chain):
        if len(set(spec.names)) < len(spec.names):
            raise SettingError(key, spec.names, "must have a different name for each part")
        for name, part in zip(spec.names, spec.parts, strict=True):
            if not isinstance(part, Struct):
                raise SettingError(_join(key, name), part, "must be a Spec")
            check(part, _join(key, name))
    elif isinstance(spec, Struct):
        hints = get_type_hints(type(spec))
        for name, field in fields(spec):
            value, path = getattr(spec, name), _join(key, name)
            allowed = field.metadata.get("range")
            if allowed is None:
                if value is None and field.default is None:
                    continue
                kind = hints[name] if isinstance(hints[name], type) else Struct
                if not isinstance(value, kind):
                    raise SettingError(path, value, f"must be of the kind {kind.__name__}")
                check(value, path)
                continue
            many = isinstance(field.default, tuple)
            if many and not (isinstance(value, tuple) and len(value) >= allowed.least):
                raise SettingError(
                    path, value, f"must be a list of at least {allowed.least}, each {allowed}"
                )
            for element in value if many else (value,):
                if element not in allowed:
                    raise SettingError(path, value, f"must be {'a list, each ' * many}{allowed}")


def to_config(spec: Struct, among: Sequence[Struct] = ()) -> dict[str, Any]:
    """`spec` as plain containers, which `plasticity.from_config` reads back.

    Args:
      spec: what to describe.
      among: specs of the same structure; a setting in which they differ is given as a list.
    """
    if isinstance(spec, Chain):
        others = [other.parts for other in among if isinstance(other, Chain)]
        return {
            name: to_config(part, [parts[i] for parts in others])
            for i, (name, part) in enumerate(zip(spec.names, spec.parts, strict=True))
        }
    kind = type(spec)
    plain: dict[str, Any] = {TARGET: f"{kind.__module__}.{kind.__qualname__}"}
    for name, _ in fields(spec):
        value, values = getattr(spec, name), [getattr(other, name) for other in among]
        if isinstance(value, Struct):
            plain[name] = to_config(value, values)
        elif any(other != value for other in values):
            plain[name] = values
        else:
            plain[name] = list(value) if isinstance(value, tuple) else value
    return plain


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
