"""Reads a Python file of settings without running it: the assignments of plain data."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from watchman.errors import ConfigError

#: Functions that make a mapping, and functions that take a value from the environment.
_MAPPINGS = ("OrderedDict", "collections.OrderedDict", "dict")
_ENVIRONMENT = ("os.environ.get", "os.getenv", "environ.get", "getenv")

#: Characters of code that a note quotes.
_LONGEST = 60


@dataclass(frozen=True, slots=True)
class Opaque:
    """Code whose value or effect only running the file could tell, and its line."""

    code: str
    line: int

    def __str__(self) -> str:
        return f"line {self.line}: {self.code}"


class Environment(str):
    """Text in which `${NAME}` stands for a variable of the environment."""

    __slots__ = ()


@dataclass(slots=True)
class Pairs:
    """A mapping. `ordered` if the first version saw its items in the order of the file."""

    items: dict[Any, Any]
    ordered: bool = False


@dataclass(slots=True)
class Written:
    """The values that a file assigns, by name, and the code in it that does something else."""

    values: dict[str, Any] = field(default_factory=dict)
    others: list[Opaque] = field(default_factory=list)
    #: Names that the file itself uses.
    used: set[str] = field(default_factory=set)


def read(path: str) -> Written:
    """Read a file. Raises ConfigError if that fails, or if the file is not Python 3."""
    try:
        with open(path, "rb") as file:
            tree = ast.parse(file.read(), path)
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except SyntaxError as error:
        what = f"{path}:{error.lineno}: {error.msg}; write that line as Python 3 has it"
        raise ConfigError([what]) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError([f"{path}: is not a Python file: {error}"]) from error
    found = Written()
    for statement in tree.body:
        _take(statement, found)
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name))
    found.used = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    return found


def _take(statement: ast.stmt, found: Written) -> None:
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            found.values[name] = evaluate(value, found.values)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            found.values[name] = evaluate(value, found.values)
        case ast.Assign(targets=[ast.Subscript(value=ast.Name(id=name), slice=key)], value=value):
            mapping = found.values.get(name)
            where = evaluate(key, found.values)
            if not isinstance(mapping, Pairs) or not isinstance(where, str):
                found.others.append(_opaque(statement))
                return
            mapping.items[where] = evaluate(value, found.values)
        case ast.ImportFrom(names=[ast.alias(name="*")]):
            found.others.append(_opaque(statement))
        case ast.Import() | ast.ImportFrom() | ast.Pass() | ast.Expr(value=ast.Constant()):
            pass
        case _:
            found.others.append(_opaque(statement))


def evaluate(node: ast.expr, names: dict[str, Any]) -> Any:
    """Return the value of an expression. An Opaque stands for each part that is not plain data."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name) if name in names:
            return names[name]
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return [evaluate(element, names) for element in elements]
        case ast.Set(elts=elements):
            if found := pairs([evaluate(element, names) for element in elements]):
                return Pairs(found.items)
        case ast.Dict(keys=keys, values=values):
            return _mapping(node, keys, values, names)
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.BinOp(left=left, op=ast.Add() | ast.Mod(), right=right):
            return _joined(node, evaluate(left, names), evaluate(right, names))
        case ast.JoinedStr(values=parts):
            return _text(node, (_part(part, names) for part in parts))
        case ast.Subscript(value=place, slice=ast.Constant(value=str() as name)):
            if ast.unparse(place) in ("os.environ", "environ"):
                return Environment(f"${{{name}}}")
        case ast.Call(func=function, args=arguments):
            return _called(node, ast.unparse(function), arguments, names)
    return _opaque(node)


def _mapping(
    node: ast.expr, keys: list[ast.expr | None], values: list[ast.expr], names: dict[str, Any]
) -> Any:
    items = {}
    for key, value in zip(keys, values, strict=True):
        name = evaluate(key, names) if key else None
        if not isinstance(name, str):
            return _opaque(node)
        items[name] = evaluate(value, names)
    return Pairs(items)


def _called(node: ast.Call, name: str, arguments: list[ast.expr], names: dict[str, Any]) -> Any:
    values = [evaluate(argument, names) for argument in arguments]
    if name in _ENVIRONMENT and values and isinstance(values[0], str):
        return Environment(f"${{{values[0]}}}")
    if name == "os.path.join" and values:
        return _text(node, iter(values), os.path.join)
    if name in _MAPPINGS and len(values) <= 1:
        found = pairs(values[0]) if values else Pairs({}, ordered=True)
        if found:
            items = found.items | {
                word.arg: evaluate(word.value, names) for word in node.keywords if word.arg
            }
            return Pairs(items, found.ordered and name != "dict" and not node.keywords)
    return _opaque(node)


def pairs(value: Any) -> Pairs | None:
    """Return a mapping as it is, and one made of a list of pairs; None for any other value."""
    if isinstance(value, Pairs):
        return value
    if not isinstance(value, list):
        return None
    for pair in value:
        if not (isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str)):
            return None
    return Pairs(dict(value), ordered=True)


def _joined(node: ast.BinOp, left: Any, right: Any) -> Any:
    if isinstance(node.op, ast.Add):
        if isinstance(left, list) and isinstance(right, list):
            return [*left, *right]
        return _text(node, iter([left, right]))
    parts = right if isinstance(right, list) else [right]
    if not isinstance(left, str) or not all(isinstance(part, str | int) for part in parts):
        return _opaque(node)
    try:
        text = left % tuple(parts)
    except (TypeError, ValueError):
        return _opaque(node)
    return _kind_of([left, *parts])(text)


def _part(part: ast.expr, names: dict[str, Any]) -> Any:
    """Return the value of a part of an f-string, an Opaque if it has a format or a conversion."""
    match part:
        case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
            return evaluate(value, names)
        case _:
            return evaluate(part, names)


def _text(node: ast.expr, parts: Iterator[Any], join: Any = lambda *parts: "".join(parts)) -> Any:
    texts = list(parts)
    if not all(isinstance(text, str) for text in texts):
        return _opaque(node)
    return _kind_of(texts)(join(*texts))


def _kind_of(texts: list[Any]) -> type[str]:
    return Environment if any(isinstance(text, Environment) for text in texts) else str


def _opaque(node: ast.expr | ast.stmt) -> Opaque:
    code = " ".join(ast.unparse(node).split())
    return Opaque(code if len(code) <= _LONGEST else f"{code[:_LONGEST]}...", node.lineno)
