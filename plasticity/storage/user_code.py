"""Which code a configuration names by import path, beside the package's own."""

import functools
import hashlib
import inspect
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Identified by the versions in meta.json. They are not imported here.
_KNOWN = {
    *sys.stdlib_module_names,
    *("plasticity", "jax", "jaxlib", "flax", "optax", "numpy"),
    *("gymnasium", "minigrid", "gymnax", "navix", "craftax", "foragax", "envpool", "metaworld"),
}


def digest_user_code(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns a digest of the source of everything of a user's own that a configuration names.

    The source is the file in which a class or function is defined, and those of its base classes;
    in a notebook or script, the class or function alone.

    Args:
      config: plain containers. Any string in them may be an import path, `package.module.Name`, or
        begin with a module, `module:id`; only modules that have been imported count.

    Returns:
      By import path, sorted.
    """
    digests = {}
    for text in _strings(config):
        digest = hashlib.sha256()
        sources = _sources(text)
        for source in sources:
            digest.update(source)
        if sources:
            digests[text] = digest.hexdigest()[:16]
    return dict(sorted(digests.items()))


def _strings(node: Any) -> Iterator[str]:
    """Yields the strings in plain containers."""
    if isinstance(node, str):
        yield node
    elif isinstance(node, Mapping | list | tuple):
        for entry in node.values() if isinstance(node, Mapping) else node:
            yield from _strings(entry)


def _sources(text: str) -> list[bytes]:
    """Returns the sources of what a text names, none if that is nothing of a user's own."""
    name = text.partition(":")[0] if ":" in text else text.rpartition(".")[0]
    module = sys.modules.get(name)
    if module is None or name.partition(".")[0] in _KNOWN:
        return []
    if ":" in text:
        return list(filter(None, [_source(module)]))
    named = getattr(module, text.rpartition(".")[2], None)
    if inspect.isclass(named):
        parts: list[Any] = [
            base for base in named.__mro__ if base.__module__.partition(".")[0] not in _KNOWN
        ]
    else:
        parts = [inspect.unwrap(named) if inspect.isroutine(named) else module]
    return list(dict.fromkeys(filter(None, map(_source, parts))))


@functools.cache
def _source(part: Any) -> bytes:
    """Returns the file in which a class, function or module is defined, empty if unknown."""
    try:
        if part.__module__ == "__main__":
            return inspect.getsource(part).encode()
    except (AttributeError, OSError, TypeError):
        pass
    try:
        return Path(inspect.getsourcefile(part) or "").read_bytes()
    except (OSError, TypeError):
        return b""
