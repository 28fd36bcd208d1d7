"""How Sphinx builds the documentation; `make docs` runs it with warnings as errors."""

from importlib import metadata

project = "tinyjax"
author = "The tinyjax authors"
project_copyright = "2026, The tinyjax authors"
release = metadata.version("tinyjax")
version = ".".join(release.split(".")[:2])

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]

html_theme = "sphinx_book_theme"
html_title = "tinyjax"
html_show_sourcelink = False

# `docs/notebooks` is a link to the notebooks; they are executed by `make notebooks`.
nb_execution_mode = "off"
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

# What `__all__` names is documented, in that order, as Google-style docstrings.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
default_role = "code"


def skip_field(app, what, name, obj, skip, options):
    """Leave out the fields of a NamedTuple that say no more than their position."""
    del app, what, name, options
    return True if (obj.__doc__ or "").startswith("Alias for field number") else skip


def setup(app):
    """Connect the above."""
    app.connect("autodoc-skip-member", skip_field)
