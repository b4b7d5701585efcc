r"""Mathematics as MathML, converted when the pages are built: no script runs, and nothing is fetched, to show it.

A `\tag{4}` puts the number beside the equation. What the converter does not know is a warning, so the build fails.
The typeface, STIX Two Math (SIL Open Font License), is the one in the package ziamath, copied into the pages.
"""

import html
import re
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from docutils import nodes
from fontTools.ttLib import TTFont
from math_core import LatexError, LatexToMathML
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)
convert = LatexToMathML().convert_with_local_state
TAG = re.compile(r"\\tag\{([^}]*)\}")


def _mathml(node: nodes.Node, latex: str, display: bool) -> str:
    try:
        return convert(latex, displaystyle=display)
    except LatexError as error:
        logger.warning("mathematics that cannot be shown: %s\n%s", error, latex, location=node)
        return f'<code class="math-error">{html.escape(latex)}</code>'


def visit_inline(self, node: nodes.math) -> None:
    """Writes one formula within text."""
    self.body.append(f'<span class="math">{_mathml(node, node.astext(), False)}</span>')
    raise nodes.SkipNode


def visit_block(self, node: nodes.math_block) -> None:
    """Writes one formula on its own, with its number if it has one."""
    latex = node.astext()
    tag = TAG.search(latex)
    number = f'<span class="number">({html.escape(tag[1])})</span>' if tag else ""
    # Formulas side by side, with \qquad between them, may go below each other where the screen is narrow.
    latex = TAG.sub("", latex)
    parts = [latex] if r"\begin" in latex else latex.split(r"\qquad")
    formula = "".join(f'<div class="formula">{_mathml(node, part, True)}</div>' for part in parts)
    self.body.append(f'<div class="equation"><div class="formulas">{formula}</div>{number}</div>\n')
    raise nodes.SkipNode


def write_font(app: Sphinx, error: Exception | None) -> None:
    """Puts the typeface beside the style sheet, of pages that could be built."""
    if error is None and app.builder.format == "html":
        font = TTFont(BytesIO((files("ziamath") / "fonts" / "STIXTwoMath-Regular.ttf").read_bytes()))
        font.flavor = "woff"  # compressed
        font.save(Path(app.outdir) / "_static" / "STIXTwoMath.woff")


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the renderer."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    app.connect("build-finished", write_font)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
