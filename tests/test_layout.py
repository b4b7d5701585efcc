"""The package's layout, read from its sources: who names a platform, who imports whom, how long files and bodies are.

Each rule is a function from a file's path in the package and its source to complaints, of which no file may have any.
"""

import ast
import io
import tokenize
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import jaxnorm

PACKAGE = Path(jaxnorm.__file__).parent
SOURCES = {
    path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))
}

# A module imports from itself and from the layers above its own. A module that no layer names is a public one, or a
# part of public ones.
PUBLIC = "public"
LAYERS = (
    {"_version", "_arguments", "_cotangents", "_sharding"},
    {"_rules", "_lower"},  # the equations, and how they are run: neither knows the other
    {PUBLIC},  # these may import each other
    {"__init__"},  # as it is imported: it may import all that it offers
    {"reference", "linen", "nnx", "haiku", "equinox"},
    {"check"},
    {"__main__"},
)
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}

MAY_NAME_A_PLATFORM = ("_lower/", "lowering.py")
MAY_SAY_WHERE_IT_RUNS = ("check/", "__main__.py")
PLATFORMS = {"cpu", "gpu", "cuda", "rocm", "tpu"}
CHOICES = {"platform_dependent", "set_xla_metadata", "xla_metadata"}
BACKENDS = {"jax.default_backend", "jax.devices", "jax.local_devices"}

FILE_LINES, BODY_LINES = 350, 30
LONG = {"check/_cases.py": "its functions are tables: each line is a case"}


def is_in(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


def imports(path: str, tree: ast.AST) -> Iterator[str]:
    """The dotted name of everything that a file imports: `from a import b` gives a.b."""
    package = ["jaxnorm", *path.split("/")[:-1]]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def file_of(name: str) -> str | None:
    """The file of the package that a dotted name is in; None if it is of another package."""
    first, *parts = name.split(".")
    if first != "jaxnorm":
        return None
    for end in range(len(parts), 0, -1):
        stem = "/".join(parts[:end])
        for path in (f"{stem}.py", f"{stem}/__init__.py"):
            if path in SOURCES:
                return path
    return "__init__.py"


def module_of(path: str) -> str:
    """The module, directly in the package, that a file is or belongs to."""
    return path.split("/")[0].removesuffix(".py")


def platform_names(path: str, source: str) -> list[str]:
    """Only what runs a rule names a platform, and asks for one; a report may say where it was made."""
    if is_in(path, MAY_NAME_A_PLATFORM):
        return []
    tree, found = ast.parse(source), set()
    for name in imports(path, tree):
        found |= set(name.split(".")) & CHOICES | {name} & BACKENDS
        found |= {name} if file_of(name) == "_lower/calls.py" else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name | ast.Attribute):
            found |= {node.id if isinstance(node, ast.Name) else node.attr} & CHOICES | {ast.unparse(node)} & BACKENDS
        elif isinstance(node, ast.keyword):
            found |= {node.arg} & PLATFORMS
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found |= {node.value} & (PLATFORMS | CHOICES)
    found -= BACKENDS if is_in(path, MAY_SAY_WHERE_IT_RUNS) else set()
    return [f"{path} names a platform: {name}" for name in sorted(found)]


def upward_imports(path: str, source: str) -> list[str]:
    """Imports run one way, from the parts to the whole. So no rule imports its twin or the checker."""
    module, wrong = module_of(path), []
    if path == "__init__.py":
        return []
    rank = RANKS.get(module, RANKS[PUBLIC])
    for name in imports(path, ast.parse(source)):
        file = file_of(name)
        other = RANKS.get(module_of(file), RANKS[PUBLIC]) if file else -1
        beside = file and (module_of(file) == module or other == rank == RANKS[PUBLIC])
        if other >= rank and not beside:
            wrong.append(f"{path} imports {name}")
    return wrong


def cycle(sources: dict[str, str]) -> list[str]:
    """Files that import each other in a circle, which the layers allow within one of them."""
    files = {path: {file_of(name) for name in imports(path, ast.parse(source))} for path, source in sources.items()}
    try:
        TopologicalSorter({path: found - {path, None} for path, found in files.items()}).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def code_lines(source: str, tree: ast.AST) -> set[int]:
    """The lines that hold code: no docstrings, comments or blank lines."""
    nothing = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in nothing:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        documented = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        if documented and ast.get_docstring(node) is not None:
            lines -= lines_of(node.body[0], node.body[0])
    return lines


def lines_of(first: ast.stmt, last: ast.stmt) -> set[int]:
    return set(range(first.lineno, (last.end_lineno or 0) + 1))


def lengths(path: str, source: str) -> list[str]:
    """No file and no function's body is long."""
    tree, total = ast.parse(source), len(source.splitlines())
    long = [f"{path} has {total} lines, more than {FILE_LINES}"] if total > FILE_LINES else []
    code = code_lines(source, tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = len(code & lines_of(node.body[0], node))
            if body > BODY_LINES:
                long.append(f"{path}: {node.name} has a body of {body} lines, more than {BODY_LINES}")
    return long


@pytest.mark.parametrize("rule", [platform_names, upward_imports, lengths], ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", SOURCES)
def test_sources(path: str, rule):
    complaints = rule(path, SOURCES[path])
    if rule is lengths and path in LONG:
        assert complaints, "an exception that is not needed"
    else:
        assert not complaints


def test_no_files_import_each_other_in_a_circle():
    assert not cycle(SOURCES)


# --- the rules themselves, on planted sources -------------------------------------------------------------------------

RULE = "_rules/planted.py"


@pytest.mark.parametrize("path", [RULE, "dense.py", "losses/_rows.py", "reference/_losses.py"])
@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("from jax import lax\ny = lax.platform_dependent(x, cpu=f, default=g)", ["cpu", "platform_dependent"]),
        ("from jax.lax import platform_dependent as choose", ["platform_dependent"]),
        ("from jax.experimental.xla_metadata import set_xla_metadata", ["set_xla_metadata", "xla_metadata"]),
        ("import jax.experimental.xla_metadata as metadata", ["xla_metadata"]),
        ("import jax\nslow = jax.default_backend() == 'cpu'", ["cpu", "jax.default_backend"]),
        ("from jax import default_backend as backend", ["jax.default_backend"]),
        ("import jax\ndef f(x):\n    return jax.devices('gpu')[0]", ["gpu", "jax.devices"]),
        ("choose(x, cuda=f, rocm=f, tpu=g)", ["cuda", "rocm", "tpu"]),
        ("choose(x, **{'tpu': f})", ["tpu"]),
        ("from jaxnorm._lower.calls import outlined", ["jaxnorm._lower.calls.outlined"]),
        ("from jaxnorm._lower import calls", ["jaxnorm._lower.calls"]),
        ("def f():\n    import jaxnorm._lower.calls", ["jaxnorm._lower.calls"]),
    ],
)
def test_a_named_platform_is_found(path: str, source: str, named: list[str]):
    assert platform_names(path, source) == [f"{path} names a platform: {name}" for name in named]
    assert platform_names("_lower/planted.py", source) == platform_names("lowering.py", source) == []


def test_a_report_may_say_where_it_was_made_and_words_are_no_names():
    asks = "import jax\nwhere = jax.default_backend(), jax.devices()[0].device_kind"
    assert platform_names("check/_report.py", asks) == platform_names("__main__.py", asks) == []
    assert platform_names("check/_report.py", "f(x, cpu=g)")
    assert not platform_names(RULE, '"""On a cpu."""\nfrom jaxnorm._lower import rows\nn = mesh.devices  # on a tpu')


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (RULE, "from jaxnorm import reference"),
        (RULE, "import jaxnorm.check"),
        (RULE, "from jaxnorm._lower.rows import sum_over"),
        (RULE, "from .._lower import rows"),
        (RULE, "from jaxnorm.dense import affine"),
        (RULE, "import jaxnorm as jn"),
        ("_lower/rows.py", "from jaxnorm._rules import normalization"),
        ("_lower/convolution/planted.py", "def f():\n    from jaxnorm.convolution import conv"),
        ("_arguments.py", "from jaxnorm import _cotangents"),
        ("_cotangents.py", "from jaxnorm._rules import normalization"),
        ("dense.py", "from jaxnorm import reference"),
        ("losses/_rows.py", "from jaxnorm.check import check_vjp"),
        ("norms.py", "import jaxnorm"),
        ("reference/_losses.py", "from jaxnorm.check import check_vjp"),
        ("check/_library.py", "import jaxnorm.__main__"),
    ],
)
def test_an_import_the_wrong_way_is_found(path: str, source: str):
    assert len(upward_imports(path, source)) == 1


def test_imports_the_right_way_and_of_other_packages_are_none():
    below = "import jax\nfrom jaxnorm._arguments import as_array\nfrom jaxnorm._cotangents import cast"
    assert upward_imports(RULE, below) == upward_imports("_lower/rows.py", below) == []
    public = f"{below}\nfrom jaxnorm._rules import normalization\nfrom jaxnorm._lower import rows\nimport jaxnorm.dense"
    assert upward_imports("norms.py", public) == upward_imports("reference/_losses.py", public) == []
    assert upward_imports("check/_library.py", "import jaxnorm\nfrom jaxnorm import reference") == []


def test_a_circle_is_found():
    circle = {"norms.py": "from jaxnorm.dense import affine", "dense.py": "def f():\n    from jaxnorm import norms"}
    assert set(cycle(circle)) == set(circle)
    assert cycle({**SOURCES, "reference/_losses.py": "import jaxnorm"})


def test_long_files_and_bodies_are_found_and_only_code_counts():
    body = "".join(f"    x = {i}  # a comment\n" for i in range(BODY_LINES))
    fits = f'def f(\n    x,\n):\n    """A docstring\n    of two lines."""\n\n    # a comment\n{body}'
    nested = '\n    def g():\n        """Nested."""\n        return 1\n'
    assert not lengths("dense.py", fits)
    assert lengths("dense.py", fits + nested) == [f"dense.py: f has a body of {BODY_LINES + 2} lines, more than 30"]
    assert not lengths("dense.py", "\n" * FILE_LINES)
    assert lengths("dense.py", "\n" * (FILE_LINES + 1)) == ["dense.py has 351 lines, more than 350"]
