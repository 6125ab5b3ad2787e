"""How the documentation is built, with `make docs`. Nothing here needs a network."""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "reconnect_fsm"
author = "the reconnect_fsm authors"
project_copyright = "the reconnect_fsm authors"
version = release = importlib.metadata.version("reconnect-fsm")

extensions = [
    "directives",
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["**/README.md"]
nitpicky = False  # docstrings also name what has no page here: aiohttp's classes, attributes of other classes
default_role = "py:obj"
suppress_warnings = ["config.cache"]

# Markdown

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist"]
myst_heading_anchors = 3
myst_linkify_fuzzy_links = False

# Docstrings

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autodoc_class_signature = "mixed"
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False
napoleon_use_ivar = True

# The pages: nothing is loaded from anywhere else

html_theme = "furo"
html_title = "reconnect_fsm"
html_favicon = "../reconnect_fsm/inspector/page/icon.svg"
html_static_path = ["_static"]
templates_path = ["_templates"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "top_of_page_buttons": [],
    "light_css_variables": {"font-stack": "system-ui, sans-serif"},
    "dark_css_variables": {"font-stack": "system-ui, sans-serif"},
}
pygments_style = "friendly"
pygments_dark_style = "github-dark"
