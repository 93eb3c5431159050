"""The documentation site: `.venv/bin/sphinx-build -W docs build/site`, open build/site/index.html.

Pages are Markdown. The start page is README, which links to files as GitHub shows them; what lies
outside of docs/ is named on the site without a link. Docstrings are plain text with Google's
sections and no reStructuredText, so their special characters are escaped.
"""

import importlib.metadata
from pathlib import Path
import re
import sys

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

project = "shortcut_tpu"
author = "The shortcut_tpu authors"
copyright = "The shortcut_tpu authors, Apache-2.0"
version = release = importlib.metadata.version("shortcut_tpu")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["*.py"]
html_theme = "furo"
html_title = f"shortcut_tpu {version}"
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]

myst_heading_anchors = 3
# The notebook holds its outputs; CI executes it.
nb_execution_mode = "off"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_use_ivar = True
# Signatures have the types.
napoleon_attr_annotations = False
add_module_names = False
default_role = "code"

_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)#:]+)\)")


def name_files_outside(app, relative_path, parent, content):
    """Of an included page, the links to files that are no pages of the site become their text."""

    def renamed(link):
        text, target = link.groups()
        page = ROOT / "docs" / target.removeprefix("docs/")
        return link[0] if page.is_file() else text

    content[0] = _LINK.sub(renamed, content[0])


def as_restructured_text(app, what, name, obj, options, lines):
    """Escapes a docstring's plain text; what is indented within a paragraph's text is literal."""
    text, section, literal = [], False, False
    for line in lines:
        section = section or bool(re.fullmatch(r"(Args|Attributes|Returns|Raises|Yields):", line))
        if remark := re.fullmatch(r"((?:Class a|A)ttributes.+):", line):
            section = True
            text += [_escaped(remark[1]) + ":", "", "Attributes:"]
            continue
        if line.startswith("  ") and not section:
            if not literal:
                text += ["::", ""]
            literal = True
            text.append("  " + line)
            continue
        if line:
            literal = False
        usage = line.startswith("Usage")
        text.append("Usage:" if usage else _escaped(line))
    lines[:] = text


def _escaped(line):
    parts = re.split(r"(`[^`]+`)", line)
    parts[::2] = [re.sub(r"([*|\\]|_(?=[\s.,;:)]|$)|`)", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"`{part}`" for part in parts[1::2]]
    return "".join(parts)


def setup(app):
    app.connect("include-read", name_files_outside)
    app.connect("autodoc-process-docstring", as_restructured_text, priority=100)
