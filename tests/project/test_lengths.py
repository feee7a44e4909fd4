"""What is long says why, in its docstring."""

import ast

from tests.servers.brokers import ROOT

#: Lines that a function, a class and a module may have without a reason.
SHORT = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 250, ast.Module: 350}

Part = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module


def says_why(part: Part) -> bool:
    text = " ".join((ast.get_docstring(part) or "").split())
    return "is long because" in text or "is long only because" in text


def long_parts(source: str) -> dict[str, bool]:
    """The long parts of a module, and whether each says why. A class may say it for its module."""
    module = ast.parse(source)
    long = {}
    for part in ast.walk(module):
        if isinstance(part, ast.Module):
            lines, speakers = source.count("\n"), [part, *part.body]
        elif isinstance(part, Part):
            lines, speakers = (part.end_lineno or 0) - part.lineno + 1, [part]
        else:
            continue
        if lines > SHORT[type(part)]:
            name = getattr(part, "name", "the module")
            long[f"{name}, {lines} lines"] = any(
                says_why(one) for one in speakers if isinstance(one, Part)
            )
    return long


def test_what_is_long_says_why() -> None:
    long = {
        f"{path.relative_to(ROOT)}: {part}": says
        for path in sorted((ROOT / "watchman").rglob("*.py"))
        for part, says in long_parts(path.read_text()).items()
    }
    assert [part for part, says in long.items() if not says] == []
    assert 0 < len(long) < 25, "or it is no exception any more"


def test_what_is_long_and_silent_is_found() -> None:
    body = "\n".join("    x = 1" for _ in range(61))
    why = '    """It is long because it is only a test."""'
    assert long_parts(f"def f():\n{body}\n") == {"f, 62 lines": False}
    assert long_parts(f"def f():\n{why}\n{body}\n") == {"f, 63 lines": True}
    lines = "\n".join("x = 1" for _ in range(351))
    assert long_parts(f"{lines}\n") == {"the module, 351 lines": False}
    assert long_parts(f"class C:\n{why}\n{lines}\n") == {"the module, 353 lines": True}
