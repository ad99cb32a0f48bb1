"""Configuration of the documentation site: `make docs` builds it in docs/_build/html."""

import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS / "_ext")]

# Notebooks live beside the package; the site shows them as they are saved.
(DOCS / "notebooks").mkdir(exist_ok=True)
for notebook in (ROOT / "notebooks").glob("*.ipynb"):
    shutil.copy2(notebook, DOCS / "notebooks")

project = "plasticity"
author = "the plasticity authors"
copyright = author

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "catalogue",
]
exclude_patterns = ["_build", "jupyter_execute"]
nitpicky = True
default_role = "code"
# What is documented elsewhere, and names that a reader sees in a signature but need not look up.
nitpick_ignore_regex = [
    (r"py:.*", r".*\s.*|ArrayTree"),  # prose before a colon in a Returns section
    (r"py:.*", r"(jax|jaxlib|jnp|flax|nn|optax|numpy|np|pandas|pd|matplotlib|omegaconf)\b.*"),
    (r"py:.*", r"(collections|pathlib|typing|rich|plt|Axes|Figure|Path|Mapping|Callable)\b.*"),
    (
        r"py:.*",
        r"(.*\.)?(Array|Params|State|Batch|Metrics|Policy|Any|P|S|T|optional|Dyadic|Operator|FloatOperator|Quantizer|RunningMeanStd)",
    ),
    (
        r"py:.*",
        r"plasticity\.(networks|integer|training|storage|envs|interventions|agents|struct|shifts)\b.*",
    ),
]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"

autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "sphinx_book_theme"
html_title = "plasticity"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "navbar_persistent": [],  # the search field is in the sidebar
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
}
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"
