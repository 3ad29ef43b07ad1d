"""What is wrong with a Dockerfile, told with its place, the line itself and a hint."""

from __future__ import annotations

from tare.errors import InvalidArgument


class DockerfileError(InvalidArgument):
    """``str()`` is the one-line message that Docker's clients know; ``explain()`` is for people at a terminal."""

    def __init__(self, message: str, *, name: str = "Dockerfile", line: int = 0, source: str = "", hint: str = "") -> None:
        place = f"dockerfile parse error on line {line}: " if line else ""
        super().__init__(f"{place}{message}")
        self.message = message
        self.name = name
        self.line = line
        self.source = source
        self.hint = hint

    def explain(self) -> str:
        """The message with file, line, source and hint, over several lines."""
        lines = [f"{self.name}:{self.line}: {self.message}" if self.line else f"{self.name}: {self.message}"]
        first = self.line
        for number, text in enumerate(self.source.splitlines()[:8]):
            lines.append(f"  {first + number:4} | {text}")
        if self.hint:
            lines.append(f"  hint: {self.hint}")
        return "\n".join(lines)
