"""Which handler answers which path: a table of (method, pattern) with path parameters.

Patterns: ``/containers/{id}/json``: ``{id}`` is one segment, not empty; ``/images/{name:*}/json``: ``{name:*}`` may contain slashes.
Exact paths win over patterns; patterns are tried in the order of registration, and a pattern without the request's method does not hide
a later one that has it. Matching works on the decoded path.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")

_PARAMETER = re.compile(r"\{(\w+)(:\*)?\}")


@dataclass(frozen=True)
class Route(Generic[T]):
    """``handler`` is whatever the face wants to find. ``max_body`` bounds ``Request.read`` (None: the server's default). ``pattern`` is
    what the route was registered under."""

    handler: T
    max_body: int | None = None
    pattern: str = ""


class NoRoute(Exception):
    """Nothing matches; ``allowed`` lists the methods that the path would have (empty: the path is unknown)."""

    def __init__(self, allowed: tuple[str, ...] = ()) -> None:
        super().__init__("page not found")
        self.allowed = allowed


@dataclass
class _Pattern(Generic[T]):
    expression: re.Pattern[str]
    methods: dict[str, Route[T]] = field(default_factory=dict)


class Router(Generic[T]):
    """Register with ``add`` or as a decorator: ``@router.get("/containers/{id}/json")``."""

    def __init__(self) -> None:
        self._exact: dict[str, dict[str, Route[T]]] = {}
        self._patterns: dict[str, dict[str, _Pattern[T]]] = {}

    def add(self, method: str, pattern: str, handler: T, max_body: int | None = None) -> None:
        route = Route(handler, max_body, pattern)
        if "{" not in pattern:
            methods = self._exact.setdefault(pattern, {})
        else:
            first = pattern.split("/", 2)[1]
            group = self._patterns.setdefault("" if "{" in first else first, {})
            if pattern not in group:
                group[pattern] = _Pattern(_compile(pattern))
            methods = group[pattern].methods
        if method in methods:
            raise ValueError(f"{method} {pattern} is registered twice")
        methods[method] = route

    def include(self, other: Router[T]) -> None:
        """Take over all routes of ``other`` (one router per module, one table per face)."""
        for path, methods in other._exact.items():
            for method, route in methods.items():
                self.add(method, path, route.handler, route.max_body)
        for group in other._patterns.values():
            for text, pattern in group.items():
                for method, route in pattern.methods.items():
                    self.add(method, text, route.handler, route.max_body)

    def route(self, method: str, pattern: str, max_body: int | None = None) -> Callable[[T], T]:
        def register(handler: T) -> T:
            self.add(method, pattern, handler, max_body)
            return handler

        return register

    def get(self, pattern: str) -> Callable[[T], T]:
        return self.route("GET", pattern)

    def post(self, pattern: str, max_body: int | None = None) -> Callable[[T], T]:
        return self.route("POST", pattern, max_body)

    def put(self, pattern: str, max_body: int | None = None) -> Callable[[T], T]:
        return self.route("PUT", pattern, max_body)

    def delete(self, pattern: str) -> Callable[[T], T]:
        return self.route("DELETE", pattern)

    def head(self, pattern: str) -> Callable[[T], T]:
        return self.route("HEAD", pattern)

    def find(self, method: str, path: str) -> tuple[Route[T], dict[str, str]]:
        """The route and its path parameters, or ``NoRoute``."""
        allowed: set[str] = set()
        methods = self._exact.get(path)
        if methods is not None:
            if method in methods:
                return methods[method], {}
            allowed.update(methods)
        first = path[1 : path.find("/", 1)] if path.find("/", 1) > 0 else path[1:]
        for key in (first, "") if first else ("",):
            for pattern in self._patterns.get(key, {}).values():
                match = pattern.expression.fullmatch(path)
                if match is not None:
                    if method in pattern.methods:
                        return pattern.methods[method], match.groupdict()
                    allowed.update(pattern.methods)
        raise NoRoute(tuple(sorted(allowed)))


def _compile(pattern: str) -> re.Pattern[str]:
    parts: list[str] = []
    position = 0
    for match in _PARAMETER.finditer(pattern):
        parts.append(re.escape(pattern[position : match.start()]))
        parts.append(f"(?P<{match[1]}>{'.+' if match[2] else '[^/]+'})")
        position = match.end()
    parts.append(re.escape(pattern[position:]))
    return re.compile("".join(parts), re.DOTALL)
