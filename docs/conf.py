"""How the documentation is built: `sphinx-build -W docs OUT` is all of it."""

import os
from typing import Any

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import adamx

project = "adamx"
author = copyright = "The adamx authors"
version = release = adamx.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]

html_theme = "furo"
html_title = "adamx"
html_show_sourcelink = False
html_math_renderer = "mathml"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

# Docstrings: a name in single backticks is linked where it is documented.
default_role = "py:obj"
autodoc_typehints = "none"  # docstrings tell shapes and dtypes, which annotations cannot
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_param = False  # arguments that are told together stay together
napoleon_use_rtype = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 120
nb_merge_streams = True
os.environ["JAX_PLATFORMS"] = "cpu"  # the same output on every machine


def _write_inline(self: Any, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _write_block(self: Any, node: nodes.math_block) -> None:
    self.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write mathematics as MathML, which browsers show without a script from elsewhere."""
    app.add_html_math_renderer(
        "mathml", inline_renderers=(_write_inline, None), block_renderers=(_write_block, None)
    )
