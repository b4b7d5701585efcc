"""Directives for what is not written by hand: the library's source, programs' output and plots, recorded benchmarks.

    {source} normalization.py::_normalize_bwd     lines of the library; `literalinclude` with shorter arguments
    {run} experiments/train_digits.py ...     what a program prints and draws, run when the pages are built
    {recorded}                                    the tables and plots of experiments/results, or one file's
    {seconds}`gallery/digits`                     how long a notebook ran, within a sentence or a table

A quoted line that has gone, or a program that fails, is a warning, and so fails a build with -W.
"""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from myst_nb.sphinx_ import NbMetadataCollector
from sphinx.application import Sphinx
from sphinx.directives.code import LiteralInclude
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxDirective, SphinxRole

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"
BUILD = ROOT / "docs" / "_build"
NAME = re.compile(r"[a-z]+(_[a-z]+)+")
NUMBER = re.compile(r"[-+]?[\d.,]+(e[-+]?\d+)?|–")
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Source(LiteralInclude):
    """`{source} FILE::NAME` quotes the function or class NAME of jaxnorm/FILE, or with `:start-at:` a part of it."""

    def run(self) -> list[nodes.Node]:
        """Turns the argument into literalinclude's."""
        file, _, name = self.arguments[0].partition("::")
        self.arguments[0] = f"/../jaxnorm/{file}"
        self.options.setdefault("caption", f"`jaxnorm/{file}`" + (f", `{name}`" if name else ""))
        self.options.setdefault("language", "python")
        if name:
            self.options["pyobject"] = name
        if "start-at" in self.options or "start-after" in self.options:
            self.options.setdefault("dedent", None)  # all that there is
        return super().run()


class Run(SphinxDirective):
    """`{run} ARGUMENTS` shows `python ARGUMENTS` and what it prints.

    With `:json: FILE KEY` it shows the records at KEY of a file that the program wrote as a table instead, in
    `:columns:` (comma-separated, all by default), `:only: FIELD VALUE` some of them. With `:plot: FILE` it shows an
    image that the program drew, whose caption is the content. With `:quiet:` the command is not shown again. Results
    are kept in the build folder for as long as no source file changes.
    """

    required_arguments = 1
    final_argument_whitespace = True
    has_content = True
    option_spec = {
        **dict.fromkeys(("plot", "alt", "json", "columns", "only"), directives.unchanged),
        "quiet": directives.flag,
    }

    def run(self) -> list[nodes.Node]:
        """Runs the program, unless it has been run."""
        command = self.arguments[0]
        folder = BUILD / "generated" / fingerprint(command)
        output = folder / "output.txt"
        if not output.exists():
            folder.mkdir(parents=True, exist_ok=True)
            first, *rest = shlex.split(command)
            script = first if first == "-m" else str(ROOT / first)
            environment = os.environ | {"COLUMNS": "88"}
            done = subprocess.run(
                [sys.executable, script, *rest], cwd=folder, env=environment, capture_output=True, text=True
            )
            if done.returncode:
                message = f"python {command} failed:\n{done.stdout}\n{done.stderr}"
                return [self.state.document.reporter.warning(message, line=self.lineno)]
            output.write_text(_as_seen(done.stdout), encoding="utf-8")
        result: list[nodes.Node] = []
        if "quiet" not in self.options:
            text = f"$ python {command}"
            if "json" not in self.options:
                text += f"\n{output.read_text(encoding='utf-8').rstrip()}"
            result.append(nodes.literal_block("", text, language="console"))
        if json_file := self.options.get("json"):
            file, key = json_file.split()
            records = json.loads((folder / file).read_text(encoding="utf-8"))[key]
            if only := self.options.get("only"):
                field, value = only.split(maxsplit=1)
                records = [record for record in records if str(record[field]) == value]
            named = self.options.get("columns", ", ".join(records[0])).split(",")
            result.append(_table("", *as_rows(records, [name.strip() for name in named])))
        if plot := self.options.get("plot"):
            caption = " ".join(self.content)
            result.append(figure(folder / plot, self.options.get("alt", caption), caption))
        return result


def fingerprint(command: str) -> str:
    """A name for the results of a command on these sources."""
    digest = hashlib.sha256(command.encode())
    for folder in (ROOT / "jaxnorm", ROOT / "experiments"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _as_seen(text: str) -> str:
    """Text as a terminal shows it in the end: of a line that was written again and again, the last state."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1].rstrip() for line in ESCAPES.sub("", text).split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def figure(path: Path, alt: str, caption: str) -> nodes.figure:
    """An image file anywhere in the repository, with a caption."""
    image = nodes.image(uri=f"/../{path.resolve().relative_to(ROOT).as_posix()}", alt=alt, classes=["plot"])
    return nodes.figure("", image, nodes.caption("", caption))


# --- recorded benchmarks --------------------------------------------------------------------------------------------


class Recorded(SphinxDirective):
    """`{recorded}` shows every table and plot of experiments/results, or says that there is none.

    With an argument it shows the files of that name, without its suffix. `:except: NAME ...` leaves some out.
    """

    optional_arguments = 1
    option_spec = {"except": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        """One section for each file's results."""
        self.env.note_reread()  # new files are not dependencies of the page yet
        found = sorted(RESULTS.glob("*.json")) + sorted(RESULTS.glob("*.png"))
        if self.arguments:
            found = [path for path in found if path.stem == self.arguments[0]]
        found = [path for path in found if path.stem not in self.options.get("except", "").split()]
        if not found:
            text = "No recorded results: this copy has no such files in experiments/results."
            return [nodes.paragraph("", text)]
        result: list[nodes.Node] = []
        for path in found:
            self.env.note_dependency(str(path))
            if path.suffix == ".png":
                title = path.stem.replace("_", " ").capitalize()
                result.append(figure(path, title, f"{title} ({path.relative_to(ROOT).as_posix()})"))
            else:
                machines, recorded = tables(json.loads(path.read_text(encoding="utf-8")))
                result += [nodes.paragraph("", machine) for machine in machines]
                result += [_table(*table) for table in recorded]
        return result


def tables(results: dict[str, Any]) -> tuple[list[str], list[tuple[str, list[str], list[list[str]]]]]:
    """What one file of results was measured with, and its tables (title, columns, rows): the benchmark's own."""
    sys.path.insert(0, str(ROOT / "experiments"))
    try:
        from bench_compiled_report import grid as compiled_grid
        from bench_tables import grids, machine_text
    finally:
        sys.path.remove(str(ROOT / "experiments"))
    if "target" in results:
        compiled = compiled_grid(results["target"], results["rows"])
        used = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
        return [f"Compiled, not run: {results['date']}; {used}"], [(compiled.title, compiled.columns, compiled.rows)]
    machines = dict.fromkeys(machine_text(recorded["machine"]) for recorded in results.values())
    return list(machines), [(grid.title, grid.columns, grid.rows) for grid in grids(results).values()]


def as_rows(records: list[dict[str, Any]], names: list[str]) -> tuple[list[str], list[list[str]]]:
    """A table's head and body: these fields of the records."""
    return [name.replace("_", " ") for name in names], [[_cell(r.get(name)) for name in names] for r in records]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.3g}"
    return str(value)


def _table(title: str, columns: list[str], rows: list[list[str]]) -> nodes.table:
    group = nodes.tgroup(cols=len(columns))
    group += [nodes.colspec(colwidth=1) for _ in columns]

    def row(cells: list[str]) -> nodes.row:
        def entry(cell: str) -> nodes.entry:
            text = nodes.literal("", cell) if NAME.fullmatch(cell) else nodes.Text(cell)
            classes = ["number"] if NUMBER.fullmatch(cell) else []
            return nodes.entry("", nodes.paragraph("", "", text), classes=classes)

        return nodes.row("", *map(entry, cells))

    group += nodes.thead("", row(columns))
    group += nodes.tbody("", *(row(cells) for cells in rows))
    return nodes.table("", *([nodes.title("", title)] if title else []), group)


# --- notebooks ------------------------------------------------------------------------------------------------------


class _SecondsNode(nodes.Inline, nodes.Element):
    """Stands for a notebook's seconds until all have run."""


class Seconds(SphinxRole):
    """`{seconds}` of a notebook, named by its path from the first page."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leaves a mark, and asks myst-nb to write this page again whenever a notebook has run."""
        NbMetadataCollector.set_doc_data(self.env, self.env.docname, "has_exec_table", True)
        return [_SecondsNode(notebook=self.text)], []


class FillSeconds(SphinxPostTransform):
    """Puts the numbers where the marks are."""

    default_priority = 8

    def run(self, **_: Any) -> None:
        """Replaces each mark; what did not run has a dash."""
        for mark in list(self.document.findall(_SecondsNode)):
            ran = NbMetadataCollector.get_exec_data(self.env, mark["notebook"])
            mark.replace_self(nodes.Text(f"{ran['runtime']:.0f}" if ran else "–"))


def _only_read(app: Sphinx) -> None:
    """The doctest builder has the pages' own examples to run: it reads notebooks, and writes none for a download."""
    if app.builder.name == "doctest":
        app.env.mystnb_config = app.env.mystnb_config.copy(execution_mode="off", output_folder=str(app.outdir))
        app.config.suppress_warnings = ["myst-nb.lexer"]  # it is the kernel that names the language of the cells


class Breaks(SphinxPostTransform):
    """Lets long names in tables break after an underscore."""

    default_priority = 900
    formats = ("html",)

    def run(self, **_: Any) -> None:
        """Puts a `<wbr>` after each underscore."""
        for literal in [l for entry in self.document.findall(nodes.entry) for l in entry.findall(nodes.literal)]:
            first, *others = literal.astext().split("_")
            literal.children = []
            literal += nodes.Text(first)
            for part in others:
                literal += [nodes.Text("_"), nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directives."""
    app.add_post_transform(Breaks)
    app.add_post_transform(FillSeconds)
    app.add_role("seconds", Seconds())
    app.connect("builder-inited", _only_read, priority=900)  # after myst-nb has made its configuration
    app.add_directive("source", Source)
    app.add_directive("run", Run)
    app.add_directive("recorded", Recorded)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
