"""The docstrings as Markdown, for the reference: their lists of arguments become lists, their doctests code."""

import re

from griffe import Docstring, Extension

FIELD = re.compile(r"(Args|Returns|Raises|Yields):\s*(.*)")
ITEM = re.compile(r"(\*{0,2}\w+(?:, \w+)*): (.*)")


def as_markdown(text: str, names: set[str]) -> str:
    """The docstring with a paragraph for each field, and an item for each line that begins with `name: `.

    names: the function's parameters, which get an item of their own also within a line.
    """
    lines, doctest, in_list = [], False, False
    for line in _split(_escaped(text), names).splitlines():
        example = line.startswith((">>>", "..."))
        if example and not doctest:
            lines += ["", "```pycon"]
            doctest = True
        elif doctest and not line.strip():
            lines.append("```")
            doctest = False
        bare = line.strip()
        field = None if doctest else FIELD.match(bare)
        item = ITEM.match(field[2] if field else bare) if field or line.startswith(" ") else None
        if not bare:
            in_list = False
        if field:
            lines += ["", f"**{field[1]}:**{'' if item else ' ' + field[2]}"]
        if item and not doctest:
            lines += [*([] if in_list and not field else [""]), f"- `{item[1]}`: {item[2]}"]
            in_list = True
        elif not field:
            lines.append("  " + bare if in_list and not doctest else line)
        elif not item:
            in_list = False
    return "\n".join([*lines, "```"] if doctest else lines)


def _split(text: str, names: set[str]) -> str:
    """Each "name: " of a parameter that follows a full stop, on a line of its own."""
    return re.sub(r"(?<=\.) (\w+)(?=(?:, \w+)*: )", lambda m: f"\n    {m[1]}" if m[1] in names else m[0], text)


def _escaped(text: str) -> str:
    """The stars of `**conditions` outside of code, so that they are not taken for bold letters."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"\*(?=[*\w])", r"\*", part) for part in parts[::2]]
    return "`".join(parts)


class Docstrings(Extension):
    """Applies `as_markdown` to each docstring that is read."""

    def on_object(self, *, obj, **kwargs) -> None:
        if isinstance(obj.docstring, Docstring):
            names = {parameter.name for parameter in getattr(obj, "parameters", ())}
            obj.docstring.value = as_markdown(obj.docstring.value, names)
