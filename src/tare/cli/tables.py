"""Lists of objects on stdout: docker's aligned tables, templates per row, JSON per row.

A list is printed by one of: ``table`` (the default columns), ``table TEMPLATE`` (headers made from the template's
fields), ``json`` (a document per line), ``raw``-like templates (a line per object). Columns are at least ten wide and
three apart.
"""

from __future__ import annotations

import sys

from tare.cli.failures import CliError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any


def align(lines: Sequence[str], *, least: int = 10, padding: int = 3) -> list[str]:
    """Turn tabs into spaces. A column is a run of adjacent lines that have a tab there; what follows a line's last tab is not padded."""
    rows = [line.split("\t") for line in lines]
    widths = [[0] * (len(row) - 1) for row in rows]
    depth = max((len(row) for row in widths), default=0)
    for column in range(depth):
        start = 0
        while start < len(rows):
            if len(widths[start]) <= column:
                start += 1
                continue
            end = start
            while end < len(rows) and len(widths[end]) > column:
                end += 1
            width = max(least, *(len(rows[index][column]) + padding for index in range(start, end)))
            for index in range(start, end):
                widths[index][column] = width
            start = end
    return [
        "".join(cell.ljust(width) for cell, width in zip(row, [*width_row, 0], strict=True))
        for row, width_row in zip(rows, widths, strict=True)
    ]


def write_rows(rows: Iterable[Mapping[Any, Any]], layout: str, headers: Mapping[str, str], columns: str) -> None:
    """Print ``rows`` in the user's ``layout``. ``columns`` is the default table as a template; a row's keys are the fields."""
    sys.stdout.write(rows_text(rows, layout, headers, columns))


def rows_text(rows: Iterable[Mapping[Any, Any]], layout: str, headers: Mapping[str, str], columns: str) -> str:
    """What `write_rows` prints."""
    layout = layout or "table"
    if layout == "json":
        from tare.cli.templatefunctions import row_json

        return "".join(row_json(row) + "\n" for row in rows)
    is_table = layout == "table" or layout.startswith(("table ", "table\t"))
    if layout == "table":
        names = columns.split()
        lines = ["\t".join(headers[name] for name in names)]
        lines.extend("\t".join(str(row[name]) for name in names) for row in rows)
        return "".join(line + "\n" for line in align(lines))
    text = layout[5:].strip() if is_table else layout
    text = text.replace("\\t", "\t").replace("\\n", "\n")
    lines = templated(text, rows, headers if is_table else None)
    if not is_table:
        return "".join(line + "\n" for line in lines)
    return "".join(line + "\n" for line in align("\n".join(lines).split("\n")))


def templated(text: str, rows: Iterable[Mapping[Any, Any]], headers: Mapping[str, str] | None, name: str = "") -> list[str]:
    """A line per row, with one for the headers first when they are given. ``name`` is what errors call the template."""
    from tare.cli.gotemplate import compile_template
    from tare.cli.templatefunctions import TemplateError

    try:
        template = compile_template(text, name)
    except TemplateError as error:
        raise CliError(f"failed to parse template: template: {name}:1: {error}") from None
    lines = []
    try:
        if headers is not None:
            lines.append(template.execute({**headers, "Label": lambda name: name}))
        lines.extend(template.execute(row) for row in rows)
    except TemplateError as error:
        raise CliError(f"failed to execute template: {error}") from None
    return lines


def write_one(text: str, document: Mapping[Any, Any], name: str = "") -> None:
    """One document through a template, as ``version`` and ``info`` print it. Raises CliError."""
    from tare.cli.gotemplate import compile_template
    from tare.cli.templatefunctions import TemplateError

    try:
        template = compile_template(text, name)
    except TemplateError as error:
        raise CliError(f"template parsing error: template: {name}:1: {error}", 64) from None
    try:
        sys.stdout.write(template.execute(document) + "\n")
    except TemplateError as error:
        sys.stdout.write("\n")
        raise CliError(str(error)) from None


def filters(given: Sequence[str]) -> str:
    """``--filter`` values as the API's JSON; nothing when there are none."""
    from tare.cli.documents import encode

    collected: dict[str, dict[str, bool]] = {}
    for entry in given:
        name, _, value = entry.partition("=")
        if name.strip():
            collected.setdefault(name.strip().lower(), {})[value.strip()] = True
    return encode(collected) if collected else ""
