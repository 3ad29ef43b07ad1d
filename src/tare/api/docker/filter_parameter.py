"""The ``filters`` query parameter: a JSON map from filter name to values, in its present and its older spelling.

{"label": {"a=b": true}}        API 1.22 and later
{"label": ["a=b"]}              before, still sent by many clients
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from tare.errors import InvalidArgument

_TRUE = frozenset(("1", "true"))
_FALSE = frozenset(("0", "false"))


class Filters(dict[str, list[str]]):
    """Filter name → values, as every endpoint family takes it. An absent filter matches everything."""

    @classmethod
    def parse(cls, document: str | None) -> Filters:
        if not document:
            return cls()
        try:
            raw = msgspec.json.decode(document)
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise InvalidArgument("invalid filter") from None
        if not isinstance(raw, dict):
            raise InvalidArgument("invalid filter")
        filters = cls()
        for name, values in raw.items():
            if isinstance(values, dict):
                chosen = [value for value, wanted in values.items() if wanted]
            elif isinstance(values, list) and all(isinstance(value, str) for value in values):
                chosen = list(values)
            else:
                raise InvalidArgument("invalid filter")
            filters[name] = chosen
        return filters

    def check(self, allowed: Iterable[str]) -> Filters:
        """Refuse unknown filter names with dockerd's text."""
        known = frozenset(allowed)
        for name in self:
            if name not in known:
                raise InvalidArgument(f"invalid filter '{name}'")
        return self

    def values_of(self, name: str) -> list[str]:
        return self.get(name, [])

    def flag(self, name: str, default: bool = False) -> bool:
        """A filter that is true or false, given at most once."""
        values = self.get(name, [])
        if not values:
            return default
        words = {value.lower() for value in values}
        if words <= _TRUE:
            return True
        if words <= _FALSE:
            return False
        raise InvalidArgument(f"invalid filter '{name}=[{' '.join(values)}]'")

    def matches(self, name: str, value: str) -> bool:
        """No such filter, or one of its values is exactly ``value``."""
        values = self.get(name, [])
        return not values or value in values

    def matches_labels(self, labels: Mapping[str, str] | None) -> bool:
        """``label`` (all must hold: ``key`` or ``key=value``) and ``label!`` (none may)."""
        labels = labels or {}
        return all(_has_label(labels, wanted) for wanted in self.get("label", ())) and not any(
            _has_label(labels, unwanted) for unwanted in self.get("label!", ())
        )


def _has_label(labels: Mapping[str, str], expression: str) -> bool:
    key, separator, value = expression.partition("=")
    return key in labels and (not separator or labels[key] == value)
