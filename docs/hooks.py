"""Changes that the site makes to its pages.

Equations become MathML, which a browser draws without a script. `<!-- include CONTRIBUTING.md -->` becomes that file,
with its relative links made absolute, and `<!-- configuration -->` the reference of every field. Below the title of a
tutorial stand the buttons of its notebook.
"""

import html
import logging
import posixpath
import re
from pathlib import Path

import configuration
import notebooks
from latex2mathml.converter import convert
from mkdocs.utils import get_relative_url

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
IN_NOTEBOOK = re.compile(r"(?<!\$)\$\$(.+?)\$\$(?!\$)|(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", re.DOTALL)
CODE = re.compile(r"(<(?:pre|code|script|style|svg)\b.*?</(?:pre|code|script|style|svg)>)", re.DOTALL)
LINK = re.compile(r'href="(?!\w+:)([^"#]+\.(?:md|py))(#[^"]*)?"')
FIELDS = "<!-- configuration -->"
INCLUDE = re.compile(r"<!-- include (\S+) -->")
ROOT = Path(__file__).parents[1]
LOG = logging.getLogger("mkdocs.hooks")


def on_page_markdown(markdown: str, page, config, files) -> str:
    """The page with what it includes. Headings of files go one level down where the page has its own title."""

    def include(found: re.Match) -> str:
        path = ROOT / found[1]
        source = f"{config.extra['source']}/blob/main/{Path(found[1]).parent.as_posix()}".removesuffix("/.")
        text = re.sub(r"\]\((?!\w+:|#)([^)]+)\)", rf"]({source}/\1)", path.read_text())
        return re.sub(r"(?m)^(?=#+ )", "#", text) if markdown.startswith("# ") else text

    if FIELDS in markdown:
        markdown = markdown.replace(FIELDS, configuration.page())
    return INCLUDE.sub(include, markdown)


def _mathml(latex: str, *, block: bool) -> str:
    return convert(html.unescape(latex).strip(), display="block" if block else "inline")


def on_page_content(content: str, page, config, files) -> str:
    """The page with its LaTeX written as MathML."""
    content = EQUATION.sub(lambda found: _mathml(found[3], block=found[2] == "["), content)
    if not page.file.src_path.endswith(".py"):
        return content
    parts = CODE.split(content)  # a tutorial's text comes from nbconvert, which leaves the dollars to a script
    for i in range(0, len(parts), 2):
        parts[i] = IN_NOTEBOOK.sub(lambda m: _mathml(m[1] or m[2], block=bool(m[1])), parts[i])
    content = LINK.sub(lambda found: _link(found, page, files), "".join(parts))
    return content.replace("</h1>", f"</h1>{notebooks.buttons(Path(page.file.src_path).stem)}", 1)


def _link(found: re.Match, page, files) -> str:
    """The link of a tutorial to another source file, as a link to that file's page."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), found[1]))
    target = files.get_file_from_path(path)
    if target is None:
        LOG.warning("%s links to %s, which is not in the documentation", page.file.src_uri, found[1])
        return found[0]
    return f'href="{get_relative_url(target.url, page.url)}{found[2] or ""}"'
