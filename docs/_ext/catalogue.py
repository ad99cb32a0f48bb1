"""A Sphinx directive that lists methods from their classes: `{catalogue} intervention`.

The groups are those of `python -m experiments.methods` (`intervention`, `probes`, `shift`), and
`env` for the environments. A table at the top lists all of them. Each is a section with a link to
its class, its docstring, and its settings with defaults and ranges.
"""

import dataclasses
import inspect
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from docutils import nodes
from docutils.frontend import get_default_settings
from docutils.parsers.rst import Directive, Parser
from docutils.statemachine import StringList
from docutils.utils import new_document
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

import plasticity
from plasticity.cli.methods import methods
from plasticity.struct import TARGET, Range, fields

CONFIGS = Path(__file__).parents[2] / "configs"
ENVS = (
    "Gather",
    "CartPole",
    "Gymnax",
    "Navix",
    "Craftax",
    "Forager",
    "SlowlyChangingRegression",
    "Sequence",
    "Gymnasium",
    "ProcGen",
    "Atari",
    "MiniGrid",
    "MuJoCo",
    "DMControl",
    "HostSequence",
)


class Catalogue(Directive):
    """Lists a group's methods, each as a section."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        group = self.arguments[0]
        if group == "env":
            listed: list[tuple[str, Any]] = [(name, getattr(plasticity, name)) for name in ENVS]
        else:
            listed = [(method.name, method.kind) for method in methods(group)]
        for _, kind in listed:  # so that the page is built again when a docstring changes
            self.state.document.settings.env.note_dependency(inspect.getsourcefile(kind))
        overview = self._parse(_overview(group, listed), source=f"catalogue of {group}")
        return overview + [self._section(group, name, kind) for name, kind in listed]

    def _section(self, group: str, name: str, kind: Any) -> nodes.section:
        section = nodes.section(ids=[_anchor(group, name)], names=[name])
        section += nodes.title("", "", nodes.literal(text=name))
        self.state.document.note_explicit_target(section)
        options = _env_options(name) if group == "env" else []
        section += self._parse(_lines(kind, options), f"{kind.__module__}.{kind.__qualname__}")
        return section

    def _parse(self, lines: Sequence[str], source: str) -> list[nodes.Node]:
        """Parses reStructuredText, also within a page that is Markdown."""
        inner = new_document("catalogue", get_default_settings(Parser))
        inner.settings = self.state.document.settings.copy()
        inner.reporter = self.state.document.reporter
        content = StringList([".. default-role:: code", "", *lines], source=source)
        Parser().parse("\n".join(content), inner)
        return list(inner.children)


def escape(text: str) -> str:
    """Escapes what reStructuredText would read as markup in plain docstrings."""
    text = re.sub(r"(`\w+`)(?=\^)", r"\1\\ ", text)  # an exponent right after a literal
    return re.sub(r"[|*]|(?<=\w)_(?=[\W])", lambda match: "\\" + match[0], text)


def process_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Escapes the lines of a docstring in place, before Napoleon reads them."""
    if name == "plasticity.results":
        lines[:] = ["Loads, compares and draws the results of runs.", ""]
    else:
        text = re.sub(r"(with columns)\n\n(?=\s)", r"\1::\n\n", "\n".join(lines))
        lines[:] = escape(text).split("\n")


def _overview(group: str, listed: Sequence[tuple[str, Any]]) -> list[str]:
    """Returns a table of all names and the first sentences of their docstrings."""
    lines = [".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
    lines += ["   * - name", "     - description"]
    for name, kind in listed:
        summary = " ".join(escape(inspect.getdoc(kind) or "").split("\n\n")[0].split())
        lines += [f"   * - `{name} <#{_anchor(group, name)}>`__", f"     - {summary}"]
    return [*lines, ""]


def _anchor(group: str, name: str) -> str:
    return f"{group}-{nodes.make_id(name)}"


def _env_options(name: str) -> list[str]:
    """Returns the options `env=...` that create an environment of the class `name`."""
    options = []
    for path in sorted((CONFIGS / "env").glob("*.yaml")):
        config = yaml.safe_load(path.read_text())
        while TARGET not in config:  # a preset that changes another
            config = yaml.safe_load((CONFIGS / f"env/{config['defaults'][0]}.yaml").read_text())
        if config[TARGET].rpartition(".")[2] == name:
            options.append(f"env={path.stem}")
    return options


def _lines(kind: Any, options: Sequence[str]) -> list[str]:
    """Returns a class's documentation as lines of reStructuredText.

    Args:
      kind: the class.
      options: the command-line options that create it, if they differ from the heading.
    """
    text, meanings = _split_attributes(escape(inspect.getdoc(kind) or ""))
    for base in kind.__mro__[1:]:
        inherited = _split_attributes(escape(inspect.cleandoc(base.__doc__ or "")))
        meanings = inherited[1] | meanings
    links = [f":py:class:`plasticity.{kind.__name__}`", *(f"``{option}``" for option in options)]
    lines = [", ".join(links), ""]
    lines += GoogleDocstring(text, what="class", name=kind.__name__, obj=kind).lines()
    settings = [
        (name, field.default, field.metadata.get("range"))
        for name, field in fields(kind)
        if not field.kw_only and "range" in field.metadata
    ]
    if settings:
        lines += ["", ".. list-table::", "   :header-rows: 1", "   :widths: auto", ""]
        lines += ["   * - setting", "     - default", "     - allowed", "     - meaning"]
        for name, default, allowed in settings:
            value = "required" if default is dataclasses.MISSING else f"``{default!r}``"
            lines += [f"   * - ``{name}``", f"     - {value}"]
            lines += [f"     - {_allowed(allowed)}"]
            lines += [f"     - {meanings.get(name, '')}"]
    return [*lines, ""]


def _allowed(allowed: Range) -> str:
    """Returns what a setting may be, in few words: `int >= 1`."""
    text = str(allowed)
    types = {"a whole number": "int", "a finite number": "float", "true or false": "bool"}
    for words, name in {**types, "a str": "str", " and": ","}.items():
        text = text.replace(words, name)
    return re.sub("(>=?|<=?) ", "\\1\N{NO-BREAK SPACE}", text)


def _split_attributes(text: str) -> tuple[str, dict[str, str]]:
    """Returns a docstring without its section of attributes, and what that says of each."""
    section = re.search(r"\nAttributes:\n((?:  .*\n?|\n(?=  ))*)", text)
    if section is None:
        return text, {}
    entries = re.findall(r"^  (\w[\w, ]*): (.*(?:\n    .*)*)", section[1], re.MULTILINE)
    meanings = {
        name: " ".join(meaning.split()) for names, meaning in entries for name in names.split(", ")
    }
    return text[: section.start()] + text[section.end() :], meanings


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.connect("autodoc-process-docstring", process_docstring, priority=100)
    app.add_directive("catalogue", Catalogue)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
