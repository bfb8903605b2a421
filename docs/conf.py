"""The site: sphinx-build -W docs site. Reference pages come from the docstrings, which the tests run."""

import re
import sys
from pathlib import Path

import dynloop

sys.path.insert(0, str(Path(__file__).parent))

project = "dynloop"
author = "the dynloop developers"
copyright = f"2026, {author}"
release = version = dynloop.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.autosummary", "myst_parser"]
exclude_patterns = ["_build"]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]

default_role = "code"
autosummary_generate = True
autodoc_typehints = "none"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Misleads", "Source", "Formula"]
napoleon_use_rtype = False
napoleon_use_ivar = True

html_theme = "pydata_sphinx_theme"
html_title = "dynloop"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": True, "show_prev_next": False,
                      "secondary_sidebar_items": ["page-toc"], "header_links_before_dropdown": 6}
html_sidebars = {page: [] for page in ("index", "quickstart", "models", "extend")}
html_context = {"default_mode": "auto"}
html_show_sourcelink = False

# pages outside are asked by `sphinx-build -b linkcheck`, which needs a network; -W holds every link inside
linkcheck_timeout = 10


def _escaped(app, what, name, obj, options, lines):
    """Docstrings are plain text with code between backticks: what reStructuredText would take for markup is escaped."""
    lines[:] = "\n".join(re.sub(r"^(Misleads|Source): (?=\S)", r"\1:\n    ", line) for line in lines).split("\n")
    example = False
    for i, line in enumerate(lines):
        example = line.strip() == "Example:" or (example and (not line or line.startswith(" ")))
        if example or ">>>" in line:
            continue
        pieces = re.split(r"(``?[^`]*``?)", line)
        lines[i] = "".join(piece if piece.startswith("`") else re.sub(r"(?<=\w)_(?=\W|$)", r"\_", re.sub(
            r"\||\*(?! )|(?<=\S)\*", r"\\\g<0>", piece)) for piece in pieces)


def _linked(app, docname, source):
    """`name` of a public name, in running text, leads to its page."""
    if docname.startswith("reference/"):
        return
    pieces = re.split(r"(```.*?```|~~~.*?~~~)", source[0], flags=re.S)
    source[0] = "".join(piece if piece.startswith(("```", "~~~")) else re.sub(
        r"(?<![\w`\[])`(?:dynloop\.)?(\w+)`(?!`)", lambda found: f"{{py:obj}}`{found[1]} <dynloop.{found[1]}>`"
        if found[1] in dynloop.__all__ else found[0], piece) for piece in pieces)


def setup(app):
    app.connect("source-read", _linked)
    app.connect("autodoc-process-docstring", _escaped, priority=400)  # before napoleon
