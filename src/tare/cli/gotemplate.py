"""Go's text/template, as far as ``--format`` needs it, over JSON values.

Supported: text and ``{{actions}}`` with trim markers; comments; fields and chains (``.A.B``, ``(index .X 0).Y``,
``$.A``), variables with ``:=`` and ``=``, literals, parentheses, pipelines; ``if/else if/else``, ``range/else`` (with
one or two variables, ``break``, ``continue``), ``with/else``, ``end``; the builtin functions and docker's.
``define``, ``template`` and ``block`` too.

Values are what JSON gives: dict, list, str, int, float, bool, None. A dict is Go's map; a value that can be called is
a method (``.Label "x"``). Printing follows Go's ``fmt``: ``[a b]``, ``map[k:v]``, ``true``, ``<no value>``.

Three steps: `_lex` cuts text and actions, `_Parser` builds nested tuples, `_Run` walks them. All refuse with
``TemplateError``.
"""

from __future__ import annotations

from tare.cli.templatefunctions import FUNCTIONS, MISSING, TemplateError, render, truth

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Node = tuple[Any, ...]

_SPACE = " \t\r\n"
_DEPTH = 200


def compile_template(text: str, name: str = "") -> Template:
    """Parse a format; ``name`` is what errors call it. Raises TemplateError."""
    return Template(text, name)


class _Word(str):
    """A field's or a function's name, and where in the template it stands."""

    at: int = 0


class Template:
    """A parsed format; ``execute`` renders it over one value."""

    def __init__(self, text: str, name: str = "") -> None:
        self._text = text
        self._name = name
        parser = _Parser(list(_cut(text)))
        self._nodes = parser.all()
        self._defined = parser.defined

    def execute(self, data: Any) -> str:
        """The rendered text. Raises TemplateError, which names the place."""
        out: list[str] = []
        try:
            _Run(data, out, self._defined).nodes(self._nodes, data)
        except _At as error:
            before = self._text[: error.position]
            line, column = before.count("\n") + 1, error.position - (before.rfind("\n") + 1)
            shown = error.node if len(error.node) <= 20 else error.node[:20] + "..."
            raise TemplateError(f'template: {self._name}:{line}:{column}: executing "{self._name}" at <{shown}>: {error}') from None
        except TemplateError as error:
            raise TemplateError(f"template: {self._name}:1:2: {error}") from None
        return "".join(out)


class _At(TemplateError):
    """An error at a node."""

    def __init__(self, message: str, position: int, node: str) -> None:
        super().__init__(message)
        self.position = position
        self.node = node


def _cut(text: str) -> Iterator[tuple[str, Any]]:
    """Alternating ``("text", str)`` and ``("action", tokens)``."""
    position, trim = 0, False
    while True:
        start = text.find("{{", position)
        piece = text[position:] if start < 0 else text[position:start]
        if trim:
            piece = piece.lstrip(_SPACE)
        if start < 0:
            if piece:
                yield "text", piece
            return
        start += 2
        if text[start : start + 1] == "-" and text[start + 1 : start + 2] in _SPACE:
            piece = piece.rstrip(_SPACE)
            start += 2
        if piece:
            yield "text", piece
        end = _action_end(text, start)
        inner = text[start:end]
        trim = inner.endswith("-") and inner[-2:-1] in _SPACE and len(inner) > 1
        if trim:
            inner = inner[:-2]
        position = end + 2
        if not (inner.lstrip("- ").startswith("/*") and inner[:1] in "/-" and inner.rstrip().endswith("*/")):
            yield "action", _lex(inner, start)


def _action_end(text: str, position: int) -> int:
    if text[position:].lstrip().startswith("/*"):
        close = text.find("*/", position)
        end = text.find("}}", close) if close >= 0 else -1
        if end < 0:
            raise TemplateError("unclosed comment")
        return end
    quote = ""
    while position < len(text):
        char = text[position]
        if quote:
            if char == "\\" and quote != "`":
                position += 1
            elif char == quote:
                quote = ""
        elif char in "\"`'":
            quote = char
        elif text.startswith("}}", position):
            return position
        position += 1
    if not quote and "}" in text[text.rfind("{{") :]:
        raise TemplateError('unexpected "}" in operand')
    raise TemplateError("unterminated quoted string" if quote else "unclosed action")


def _lex(text: str, start: int) -> list[tuple[str, Any]]:
    """Tokens of one action, which begins at ``start``: ``(kind, value)`` with kinds name, field, variable, value, space and the symbols."""
    tokens: list[tuple[str, Any]] = []
    position, end = 0, len(text)
    while position < end:
        char = text[position]
        if char in _SPACE:
            position += 1
            if tokens and tokens[-1][0] != "space":
                tokens.append(("space", None))
        elif char in "\"`'":
            value, position = _string(text, position)
            tokens.append(("value", value))
        elif char == "." or char == "$":
            stop = _word_end(text, position + 1)
            word = _Word(text[position + 1 : stop])
            word.at = start + position
            if char == "." and word[:1].isdecimal():
                raise TemplateError(f"bad number syntax: {word}")
            tokens.append(("field", word) if char == "." and word else ("dot", None) if char == "." else ("variable", word))
            position = stop
        elif char.isdecimal() or (char in "+-" and text[position + 1 : position + 2].isdecimal()):
            stop = position + 1
            while stop < end and (text[stop].isalnum() or text[stop] in "._"):
                stop += 1
            tokens.append(("value", _number(text[position:stop])))
            position = stop
        elif text.startswith(":=", position):
            tokens.append((":=", None))
            position += 2
        elif char in "()|,=":
            tokens.append((char, None))
            position += 1
        elif char.isalpha() or char == "_":
            stop = _word_end(text, position)
            word = _Word(text[position:stop])
            word.at = start + position
            constants = {"true": True, "false": False, "nil": None}
            tokens.append(("value", constants[word]) if word in constants else ("name", word))
            position = stop
        else:
            raise TemplateError(f'unexpected "{char}" in command')
    while tokens and tokens[-1][0] == "space":
        tokens.pop()
    return tokens


def _word_end(text: str, position: int) -> int:
    while position < len(text) and (text[position].isalnum() or text[position] == "_"):
        position += 1
    return position


def _number(text: str) -> int | float:
    try:
        return int(text, 0)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            raise TemplateError(f"bad number syntax: {text!r}") from None


_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "a": "\a", "b": "\b", "f": "\f", "v": "\v"}


def _string(text: str, position: int) -> tuple[str | int, int]:
    quote = text[position]
    position += 1
    out = []
    while text[position] != quote:
        char = text[position]
        if char == "\\" and quote != "`":
            position += 1
            char = text[position]
            if char in "xuU":
                digits = {"x": 2, "u": 4, "U": 8}[char]
                char = chr(int(text[position + 1 : position + 1 + digits], 16))
                position += digits
            elif char in _ESCAPES:
                char = _ESCAPES[char]
            else:
                raise TemplateError("invalid syntax")
        out.append(char)
        position += 1
    value = "".join(out)
    return (ord(value) if quote == "'" and len(value) == 1 else value), position + 1


class _Parser:
    """Items to nodes: ``("text", s)``, ``("print", pipe)``, ``("set", name, pipe, declare)``, ``("if"|"with", pipe, body, other)``,
    ``("range", names, pipe, body, other)``, ``("break",)``, ``("continue",)``."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        self._items = items
        self._next = 0
        self._variables = {""}
        self.defined: dict[str, list[Node]] = {}

    def all(self) -> list[Node]:
        nodes, stop = self._body()
        if stop:
            raise TemplateError(f"unexpected {{{{{stop}}}}}")
        return nodes

    def _body(self) -> tuple[list[Node], str]:
        """Nodes up to ``end`` or ``else``; which of them it was (nothing at the end of the text)."""
        nodes: list[Node] = []
        while self._next < len(self._items):
            kind, value = self._items[self._next]
            self._next += 1
            if kind == "text":
                nodes.append(("text", value))
                continue
            tokens = [token for index, token in enumerate(value) if index or token[0] != "space"]
            word = tokens[0][1] if tokens and tokens[0][0] == "name" else ""
            if word in ("end", "else"):
                self._rest = tokens[1:]
                return nodes, str(word)
            nodes.append(self._node(word, tokens))
        return nodes, ""

    def _node(self, word: str, tokens: list[tuple[str, Any]]) -> Node:
        if not tokens:
            raise TemplateError("missing value for command")
        if word in ("if", "with", "range"):
            return self._block(word, tokens[1:])
        if word in ("break", "continue"):
            return (word,)
        if word in ("template", "define", "block"):
            return self._template(word, tokens[1:])
        names, declare, rest = self._assignment(tokens)
        if names:
            return ("set", names[0], self._pipeline(rest), declare)
        return ("print", self._pipeline(rest))

    def _template(self, word: str, tokens: list[tuple[str, Any]]) -> Node:
        """``define`` (which prints nothing), ``template`` and ``block`` (both at once)."""
        parts = [token for token in tokens if token[0] != "space"]
        if not parts or parts[0][0] != "value" or not isinstance(parts[0][1], str):
            raise TemplateError(f"unexpected end of action in {word} clause")
        name, rest = parts[0][1], parts[1:]
        if word != "template":
            nodes, stop = self._body()
            if stop != "end":
                raise TemplateError("unexpected EOF")
            self.defined[name] = nodes
        if word == "define":
            return ("text", "")
        return ("template", name, self._pipeline(rest) if rest else None)

    def _assignment(self, tokens: list[tuple[str, Any]]) -> tuple[list[str], bool, list[tuple[str, Any]]]:
        names, declare, rest = _assignment(tokens)
        if declare:
            self._variables.update(names)
        return names, declare, rest

    def _pipeline(self, tokens: list[tuple[str, Any]]) -> list[list[Node]]:
        """Commands of a pipeline, whose functions and variables must exist."""
        for kind, value in tokens:
            if kind == "name" and value not in FUNCTIONS and value not in ("and", "or"):
                raise TemplateError(f'function "{value}" not defined')
            if kind == "variable" and value not in self._variables:
                raise TemplateError(f'undefined variable "${value}"')
        return _pipeline(tokens)

    def _block(self, word: str, tokens: list[tuple[str, Any]]) -> Node:
        names, _, rest = self._assignment(tokens)
        if not [token for token in rest if token[0] != "space"]:
            raise TemplateError(f"missing value for {word}")
        pipe = self._pipeline(rest)
        body, stop = self._body()
        other: list[Node] = []
        if stop == "else":
            following = [token for token in self._rest if token[0] != "space"]
            if following and following[0] in (("name", "if"), ("name", "with")):
                index = self._rest.index(following[0])
                other, stop = [self._block(following[0][1], self._rest[index + 1 :])], "end"
            else:
                other, stop = self._body()
        if stop != "end":
            raise TemplateError("unexpected EOF" if not stop else f"unexpected {{{{{stop}}}}}")
        return (word, names, pipe, body, other)


def _assignment(tokens: list[tuple[str, Any]]) -> tuple[list[str], bool, list[tuple[str, Any]]]:
    """Variables before ``:=`` or ``=``, whether they are declared, and what follows."""
    for index, token in enumerate(tokens):
        if token[0] in (":=", "="):
            names = [str(value) for kind, value in tokens[:index] if kind == "variable"]
            return names, token[0] == ":=", tokens[index + 1 :]
        if token[0] not in ("space", "variable", ","):
            break
    return [], False, tokens


def _pipeline(tokens: list[tuple[str, Any]]) -> list[list[Node]]:
    """Commands, each a list of operands."""
    commands, position = _commands(tokens, 0)
    if position < len(tokens):
        raise TemplateError("unexpected right paren")
    return commands


def _commands(tokens: list[tuple[str, Any]], position: int) -> tuple[list[list[Node]], int]:
    commands: list[list[Node]] = [[]]
    while position < len(tokens):
        kind, value = tokens[position]
        if kind == ")":
            break
        position += 1
        if kind == "space":
            continue
        if kind == "|":
            if not commands[-1]:
                raise TemplateError("missing value for command")
            commands.append([])
            continue
        node: Node
        if kind == "(":
            inner, position = _commands(tokens, position)
            if position >= len(tokens):
                raise TemplateError("unclosed left paren")
            position += 1
            node = ("pipe", inner)
        elif kind == "field":
            node = ("chain", ("dot",), (value,))
        elif kind in ("dot", "name", "variable", "value"):
            node = (kind, value)
        else:
            raise TemplateError(f'unexpected "{kind}" in operand')
        chain = []
        if kind != "value":
            while position < len(tokens) and tokens[position][0] == "field":
                chain.append(tokens[position][1])
                position += 1
        if chain:
            node = _chained(node, chain)
        commands[-1].append(node)
    if not commands[-1]:
        raise TemplateError("missing value for command")
    return commands, position


def _chained(node: Node, names: list[str]) -> Node:
    return ("chain", node[1], (*node[2], *names)) if node[0] == "chain" else ("chain", node, tuple(names))


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Run:
    """One execution."""

    def __init__(self, root: Any, out: list[str], defined: dict[str, list[Node]]) -> None:
        self._out = out
        self._defined = defined
        self._variables: list[tuple[str, Any]] = [("", root)]

    def nodes(self, nodes: list[Node], dot: Any) -> None:
        for node in nodes:
            kind = node[0]
            if kind == "text":
                self._out.append(node[1])
            elif kind == "print":
                self._out.append(render(self._pipe(node[1], dot)))
            elif kind == "set":
                self._set(node[1], self._pipe(node[2], dot), declare=node[3])
            elif kind == "template":
                self._call_template(node[1], self._pipe(node[2], dot) if node[2] else None)
            elif kind == "break":
                raise _Break
            elif kind == "continue":
                raise _Continue
            else:
                mark = len(self._variables)
                try:
                    self._block(node, dot)
                finally:
                    del self._variables[mark:]

    def _call_template(self, name: str, dot: Any) -> None:
        body = self._defined.get(name)
        if body is None:
            raise TemplateError(f'template "{name}" not defined')
        if len(self._variables) > _DEPTH:
            raise TemplateError("exceeded maximum template depth")
        mark = len(self._variables)
        self._variables.append(("", dot))
        self.nodes(body, dot)
        del self._variables[mark:]

    def _block(self, node: Node, dot: Any) -> None:
        kind, names, pipe, body, other = node
        value = self._pipe(pipe, dot)
        if kind == "range":
            self._range(names, value, body, other, dot)
            return
        if names:
            self._set(names[0], value, declare=True)
        if truth(value):
            self.nodes(body, value if kind == "with" else dot)
        else:
            self.nodes(other, dot)

    def _range(self, names: list[str], value: Any, body: list[Node], other: list[Node], dot: Any) -> None:
        pairs: list[tuple[Any, Any]]
        if value is None or value is MISSING:
            pairs = []
        elif isinstance(value, dict):
            pairs = sorted(value.items())
        elif isinstance(value, (list, tuple)):
            pairs = list(enumerate(value))
        elif isinstance(value, int) and not isinstance(value, bool):
            pairs = [(number, number) for number in range(value)]
        else:
            raise TemplateError(f"range can't iterate over {render(value)}")
        if not pairs:
            self.nodes(other, dot)
        mark = len(self._variables)
        for key, item in pairs:
            del self._variables[mark:]
            if len(names) == 1:
                self._set(names[0], item, declare=True)
            elif len(names) == 2:
                self._set(names[0], key, declare=True)
                self._set(names[1], item, declare=True)
            try:
                self.nodes(body, item)
            except _Break:
                break
            except _Continue:
                continue

    def _set(self, name: str, value: Any, *, declare: bool) -> None:
        if not declare:
            for index in range(len(self._variables) - 1, -1, -1):
                if self._variables[index][0] == name:
                    self._variables[index] = (name, value)
                    return
            raise TemplateError(f'undefined variable "${name}"')
        self._variables.append((name, value))

    def _pipe(self, commands: list[list[Node]], dot: Any) -> Any:
        value: Any = None
        for index, command in enumerate(commands):
            value = self._command(command, dot, [value] if index else [])
        return value

    def _command(self, operands: list[Node], dot: Any, piped: list[Any]) -> Any:
        first = operands[0]
        if first[0] == "name":
            return self._call(first[1], operands[1:], dot, piped)
        arguments = [self._operand(node, dot) for node in operands[1:]] + piped
        if first[0] == "chain":
            return self._chain(first, dot, arguments)
        if first == ("value", None):
            raise _At("nil is not a command", 2, "nil")
        if arguments:
            raise TemplateError(f"can't give argument to non-function {render(self._operand(first, dot))}")
        return self._operand(first, dot)

    def _call(self, name: str, operands: list[Node], dot: Any, piped: list[Any]) -> Any:
        if name in ("and", "or"):
            if not operands and not piped:
                why = f"wrong number of args for {name}: want at least 1 got 0"
                raise _At(why, getattr(name, "at", 2), name)
            result: Any = None
            for index in range(len(operands) + len(piped)):
                result = self._operand(operands[index], dot) if index < len(operands) else piped[0]
                if truth(result) == (name == "or"):
                    return result
            return result
        function = FUNCTIONS.get(name)
        if function is None:
            raise TemplateError(f'function "{name}" not defined')
        arguments = [self._operand(node, dot) for node in operands] + piped
        try:
            return function(*arguments)
        except _At:
            raise
        except (TemplateError, TypeError, ValueError, IndexError, KeyError, AttributeError) as error:
            why = str(error).removeprefix(f"error calling {name}: ")
            shown = " ".join([name, *map(_source, operands)])
            raise _At(f"error calling {name}: {why}", getattr(name, "at", 2), shown) from None

    def _operand(self, node: Node, dot: Any) -> Any:
        kind = node[0]
        if kind == "value":
            return node[1]
        if kind == "dot":
            return dot
        if kind == "variable":
            for name, value in reversed(self._variables):
                if name == node[1]:
                    return value
            raise TemplateError(f'undefined variable "${node[1]}"')
        if kind == "pipe":
            return self._pipe(node[1], dot)
        if kind == "name":
            return self._call(node[1], [], dot, [])
        return self._chain(node, dot, [])

    def _chain(self, node: Node, dot: Any, arguments: list[Any]) -> Any:
        value = self._operand(node[1], dot)
        for name in node[2]:
            try:
                value = _field(value, name)
            except TemplateError as error:
                # Go points at the second name of a chain.
                place = node[2][1] if len(node[2]) > 1 else name
                raise _At(str(error), getattr(place, "at", 2), _source(node)) from None
            if callable(value):
                value = value(*arguments)
                arguments = []
        if arguments:
            raise TemplateError(f"{node[2][-1]} has arguments but cannot be invoked as function")
        return value


def _source(node: Node) -> str:
    """A node as it was written, near enough."""
    kind = node[0]
    if kind == "value":
        from tare.cli.documents import encode

        return encode(node[1])
    if kind == "chain":
        return ("" if node[1][0] == "dot" else _source(node[1])) + "".join(f".{name}" for name in node[2])
    if kind == "variable":
        return f"${node[1]}"
    if kind == "pipe":
        return "(" + " | ".join(" ".join(map(_source, command)) for command in node[1]) + ")"
    return "." if kind == "dot" else str(node[1])


def _field(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        if name in value:
            return value[name]
        lowered = name.lower()
        for key in value:
            if isinstance(key, str) and key.lower() == lowered:
                return value[key]
        missing = value.get(MISSING)
        if missing is not None:
            raise TemplateError(f"can't evaluate field {name} in type {missing}")
        if all(isinstance(item, str) for item in value.values()):
            return None  # labels and attributes: a miss in a map of texts prints as no value
        raise TemplateError(f'map has no entry for key "{name}"')
    if value is None or value is MISSING:
        raise TemplateError(f"nil pointer evaluating interface {{}}.{name}")
    raise TemplateError(f"can't evaluate field {name} in type interface {{}}")
