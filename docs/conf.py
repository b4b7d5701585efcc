"""Sphinx configuration: `sphinx-build -W --keep-going docs docs/_build/html`. The pages load nothing from elsewhere."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

import jax

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
import generated  # noqa: E402

# The pages' examples on many devices have as many. A variable of the environment would hold for notebooks and programs
# as well, which have one device.
jax.config.update("jax_num_cpu_devices", 8)

project = "jaxnorm"
author = "the jaxnorm authors"
version = release = version_of("jaxnorm")
copyright = f"{author}, Apache-2.0"

extensions = [
    "myst_nb",  # brings myst_parser
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

# Notebooks run when the pages are built, and one that fails is a warning, so that -W fails. What they gave is kept for
# as long as their cells stay the same. myst-nb looks at nothing else, so the folder is named after the library's source
# too: a change there runs all of them, and reads all pages, again.
nb_execution_mode = "cache"
nb_execution_cache_path = str(generated.BUILD / "notebooks" / generated.fingerprint(f"jax {version_of('jax')}"))
nb_execution_timeout = 180  # seconds for a cell; the slowest notebook takes less as a whole
nb_execution_in_temp = True
nb_execution_show_tb = True
nb_merge_streams = True

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
