"""Changes that the site makes to its pages: equations become MathML, which a browser draws without a script."""

import html
import re

from latex2mathml.converter import convert

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>', re.DOTALL)
IN_NOTEBOOK = re.compile(r"(?<!\$)\$\$(.+?)\$\$(?!\$)|(?<![\\$\w])\$([^$\n]+?)\$(?![\w$])", re.DOTALL)
CODE = re.compile(r"(<(?:pre|code|script|style|svg)\b.*?</(?:pre|code|script|style|svg)>)", re.DOTALL)


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
    return "".join(parts)
