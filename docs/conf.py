"""Configure the site: `python -m sphinx -W --keep-going -b html docs build/site`."""

import os
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # whose names are documented, and nothing is computed

import soups  # noqa: E402

project = "soups"
author = "The soups authors"
copyright = "The soups authors. Apache-2.0"
version = release = soups.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "site_of_soups"]
exclude_patterns = ["_ext", "_static"]

myst_enable_extensions = ["attrs_block", "attrs_inline", "colon_fence"]
myst_heading_anchors = 4
smartquotes_action = "D"  # quotation marks are often of code

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88

html_theme = "furo"
html_title = "soups"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/logo.svg"
html_logo = "_static/logo.svg"
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "material"
copybutton_exclude = ".linenos, .gp, .go"
