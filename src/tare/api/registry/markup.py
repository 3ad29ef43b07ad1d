"""HTML that cannot forget to escape: text becomes markup only through ``element``.

element("a", "Tom & Jerry", href="/?q=<x>")  ──►  <a href="/?q=&lt;x&gt;">Tom &amp; Jerry</a>
"""

from __future__ import annotations

from html import escape

_VOID = frozenset(("meta", "link"))


class Markup(str):
    """HTML. Everything else is text."""

    __slots__ = ()


Content = str | Markup | None


def element(name: str, /, *content: Content, **attributes: str) -> Markup:
    """An element. ``None`` is left out; of attributes ``class_`` is ``class``, and names with ``__`` get ``-``."""
    head = "".join(f' {key.rstrip("_").replace("__", "-")}="{escape(value)}"' for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{head}>")
    return Markup(f"<{name}{head}>{together(*content)}</{name}>")


def together(*content: Content) -> Markup:
    """Pieces one after another; text is escaped."""
    return Markup("".join(piece if isinstance(piece, Markup) else escape(piece) for piece in content if piece is not None))
