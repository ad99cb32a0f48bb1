"""A Sphinx directive that lists methods from their classes: `{catalogue} intervention`.

The groups are those of `python -m experiments.methods` (`intervention`, `probes`, `shift`), and
`env` for the environments. Each method is a section with its docstring, its coefficients with
defaults and ranges, and its import path.
"""

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.frontend import get_default_settings
from docutils.parsers.rst import Directive, Parser
from docutils.statemachine import StringList
from docutils.utils import new_document
from sphinx.application import Sphinx
from sphinx.ext.napoleon import GoogleDocstring

import plasticity
from plasticity.cli.methods import methods
from plasticity.struct import fields

ENVS = (
    "Gather",
    "CartPole",
    "Gymnax",
    "Navix",
    "Sequence",
    "Gymnasium",
    "ProcGen",
    "Atari",
    "MiniGrid",
    "MuJoCo",
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
        return [self._section(group, name, kind) for name, kind in listed]

    def _section(self, group: str, name: str, kind: Any) -> nodes.section:
        section = nodes.section(ids=[f"{group}-{nodes.make_id(name)}"], names=[name])
        section += nodes.title("", "", nodes.literal(text=name))
        self.state.document.note_explicit_target(section)
        content = StringList(_lines(kind), source=f"{kind.__module__}.{kind.__qualname__}")
        parsed = nodes.container()
        _parse_rst(self.state.document, content, parsed)
        section += parsed.children
        return section


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


def _lines(kind: Any) -> list[str]:
    """Returns a class's documentation as lines of reStructuredText."""
    text, meanings = _split_attributes(escape(inspect.getdoc(kind) or ""))
    lines = [f"``{kind.__module__}.{kind.__qualname__}``", ""]
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
            lines += [f"   * - ``{name}``", f"     - ``{default!r}``", f"     - {allowed}"]
            lines += [f"     - {meanings.get(name, '')}"]
    return [*lines, ""]


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


def _parse_rst(document: nodes.document, content: StringList, into: nodes.Element) -> None:
    """Parses reStructuredText, also within a page that is Markdown."""
    inner = new_document("catalogue", get_default_settings(Parser))
    inner.settings = document.settings.copy()
    inner.reporter = document.reporter
    Parser().parse("\n".join(content), inner)
    into += inner.children


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.connect("autodoc-process-docstring", process_docstring, priority=100)
    app.add_directive("catalogue", Catalogue)
    return {"parallel_read_safe": False, "parallel_write_safe": True}
