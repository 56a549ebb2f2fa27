"""Configuration of the pages: `sphinx-build -W --keep-going -n -b html docs docs/_build/html`.

Notebooks are shown with their stored outputs, which the tests reproduce. The build executes the cells of the
pages, once for each change of a page; `-D nb_execution_mode=off` builds them without output, in seconds.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import generated  # noqa: E402

import ufm  # noqa: E402

generated.write(HERE.parent, HERE)

project = "ufm"
author = "the ufm developers"
copyright = author
version = release = ufm.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "docstrings", "mathml"]
exclude_patterns = ["_build", "_generated", "_ext", "jupyter_execute"]
nitpicky = True

html_theme = "furo"
html_title = f"ufm {version}"
html_static_path = ["_static"]
html_css_files = ["ufm.css"]
html_copy_source = False
html_show_sourcelink = False
html_math_renderer = "mathml"  # the browser typesets formulas, without a script or a network

myst_enable_extensions = ["dollarmath", "amsmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "cache"
nb_execution_cache_path = str(HERE / "_build" / "cells")
nb_execution_excludepatterns = ["notebooks/*"]
nb_execution_timeout = 3600  # only ends a hang, however busy the machine is
nb_merge_streams = True
nb_execution_raise_on_error = True
nb_output_stderr = "remove"
nb_render_image_options = {"width": "100%"}

napoleon_use_ivar = True  # documents the attributes of a class in its own entry
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_type_aliases = {"ArrayLike": "ArrayLike", "DTypeLike": "DTypeLike"}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 90
# every reference to our own names must resolve; those to other libraries are not looked up
nitpick_ignore_regex = [
    (r"py:.*", r"(?!ufm\.).*"),
    (r"py:.*", r"ufm\.(.*\.)?_.*|ufm\.rigour\.proofs\.Bound"),
]
