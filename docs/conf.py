"""Sphinx configuration: `sphinx-build -W --keep-going docs docs/_build/html`. The pages load nothing from elsewhere."""

import os
import sys
from importlib.metadata import version as version_of
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # the pages' examples on many devices have as many

project = "jaxnorm"
author = "the jaxnorm authors"
version = release = version_of("jaxnorm")
copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "generated",
    "mathml",
]
exclude_patterns = ["_build"]
nitpicky = True
smartquotes = False  # a prime is no quotation mark
add_function_parentheses = False
nitpick_ignore_regex = [(r"py:.*", r"(?!jaxnorm\.).*")]  # other libraries' names are not links here

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings quote code in single backticks
autodoc_typehints = "none"  # each argument's kind and shape is in the docstring
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
napoleon_custom_sections = [("Gradient", "notes_style")]
napoleon_use_rtype = False

# Docstrings' examples run under pytest, whose NUMBER option they use; the pages' own run here.
doctest_test_doctest_blocks = ""

html_theme = "furo"
html_title = f"jaxnorm {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sphinx = False
pygments_style = "default"
pygments_dark_style = "github-dark"
