"""The structure of the package: imports point downwards, and docstrings say what things do."""

import ast
import graphlib
import re

import pytest
from helpers import ROOT

# From the bottom to the top, as in docs/concepts.md. A package may import itself and those below.
LAYERS = [
    ("struct", "rng", "renamed", "scan"),
    ("networks",),
    ("integer",),
    ("interventions",),
    ("envs",),
    ("agents",),
    ("shifts", "probes"),
    ("triggers",),
    ("storage",),
    ("training", "results"),
    ("config",),
    ("cli",),
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): ast.parse(path.read_text())
    for path in sorted((ROOT / "plasticity").rglob("*.py"))
}


def imports_of(name):
    """The plasticity modules that a module imports when it is imported."""
    for node in MODULES[name].body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("plasticity"):
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("plasticity"))


@pytest.mark.parametrize("name", [name for name in MODULES if name.count(".") > 0])
def test_imports_point_downwards(name):
    """Would catch numerics that read configuration, or a library that knows its command line."""
    package = name.split(".")[1]
    if package == "__init__":
        return
    for imported in imports_of(name):
        parts = imported.split(".")
        if parts[1:] and parts[1] != package:
            assert RANKS[parts[1]] < RANKS[package], f"{name} imports {imported}"


def test_no_import_cycle():
    """Would catch two modules that need each other, packages' exports apart."""
    graph = {
        name: {imported for imported in imports_of(name) if imported in MODULES}
        for name in MODULES
        if not name.endswith("__init__")
    }
    list(graphlib.TopologicalSorter(graph).static_order())


def documented():
    """Every public function, class and method that has a docstring, with its first line."""
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                text = ast.get_docstring(node)
                if text:
                    yield f"{name}:{node.lineno}", node, text.splitlines()[0]


def test_functions_are_documented_by_a_verb():
    """Would catch a docstring that does not say what its function does: "Returns ...".

    Properties are documented by the noun that they define.
    """
    wrong = []
    for where, node, first in documented():
        if isinstance(node, ast.ClassDef):
            continue
        decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
        if decorators & {"property", "cached_property", "functools.cached_property"}:
            continue
        word = first.split()[0]
        if not re.fullmatch(r"[A-Z][a-z]+s|See", word.rstrip(".,:")):
            wrong.append(f"{where}: {first}")
    assert not wrong, "\n".join(wrong)
