"""The screens of `watchman queue`: the groups, or every upload."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from watchman.commands.screens.screen import details, indented, show, text
from watchman.commands.shared.phrases import ago, count, programs, until
from watchman.uploads.text import printable

#: How each state looks.
STYLES = {"failed": "bold red", "deferred": "yellow", "waiting": "bold", "noticed": "bold"}


def draw(groups: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yield the groups, each with its first and last upload, then the counts."""
    groups = list(groups)
    for group in groups:
        yield _heading(group["state"], _about(group))
        yield indented(details(_inside(group)))
        yield ""
    yield counts(groups)


def counts(groups: Iterable[Mapping[str, Any]]) -> Text:
    """Return how many uploads all groups together have in each state."""
    totals = Counter[str]()
    for group in groups:
        totals[group["state"]] += group["uploads"]
    told = ", ".join(f"{number:,} {state}" for state, number in totals.items())
    return text(told or "nothing waits, nothing has failed")


def show_all(uploads: Iterable[Mapping[str, Any]]) -> None:
    """Print every upload as it comes, below a heading for all in a row that have the same one.

    A line is `ID AGE PATH`. There may be too many uploads to measure them for columns. So the path,
    which may have any length, is last.
    """
    for (state, place, reason), alike in groupby(uploads, _key):
        show(_heading(state, place))
        if reason:
            show(indented(text(reason)))
        for upload in alike:
            age = f"{ago(upload.get('since')):>4}"
            path = printable(upload["path"] or "-")
            print(f"  {upload['id'] or '-':<36}  {age}  {path}")
            if by := _writers(upload):
                print(f"    {printable(by)}")
        print()


def _key(upload: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what an upload's heading is made of."""
    return upload["state"], _place(upload), upload.get("reason") or ""


def _place(row: Mapping[str, Any]) -> str:
    kind, _, name = row["place"].partition(":")
    return f" for {kind} {name}" if name else ""


def _heading(state: str, about: str) -> Text:
    return Text.assemble((state, STYLES.get(state, "")), text(about))


def _about(group: Mapping[str, Any]) -> str:
    tried = f", tried {count(group['attempts'], 'time')}" if group["attempts"] else ""
    following = f", next in {until(group['next_try'])}" if group["next_try"] else ""
    uploads = count(group["uploads"], "upload")
    return f": {uploads}{_place(group)}, oldest {ago(group['since'])}{tried}{following}"


def _inside(group: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    if group["reason"]:
        yield "why", group["reason"]
    only = group["uploads"] == 1
    yield "upload" if only else "first", _named(group["first"])
    if not only:
        yield "last", _named(group["last"])


def _named(upload: Mapping[str, Any]) -> str:
    by = _writers(upload)
    return " ".join([upload["id"] or "-", upload["path"] or "-", *([f"({by})"] if by else [])])


def _writers(upload: Mapping[str, Any]) -> str:
    of_file = upload.get("writers")
    return f"open for writing by {programs(of_file)}" if of_file else ""
