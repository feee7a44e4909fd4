"""The story of a path or of one upload: its records in the journal and in the history."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from typing import Any

from watchman.dispatch.hold_queue import HoldQueue
from watchman.errors import WatchmanError
from watchman.operate.queue_view import QueueView, Selection
from watchman.sinks.failures import NEVER_WAITED
from watchman.sinks.tries import TRIED
from watchman.store.journal import Journal
from watchman.uploads.upload import FileState, State

#: How many uploads of a path are shown, and how many records that belong to no upload: the latest.
LATEST = 20

#: Events of the journal after which an upload is settled.
SETTLED = frozenset({State.DONE, State.SUPERSEDED, State.GONE, State.DROPPED})

#: Fields of a record that say where a task went.
ROUTE = ("exchange", "routing_key", "queue")

#: A record with its number, which gives the order.
Numbered = tuple[int, dict[str, Any]]

#: Fields of an upload's record that are shown as they are, "" if one is missing.
AS_THEY_ARE = ("path", "original", "watch", "source", "user", "client", "protocol")

#: Fields of an upload in `uploads`. A field is None if its value is not known.
FIELDS = (
    *("id", "state", "at", "reason", *AS_THEY_ARE, "size", "accepted", "move", "destination"),
    *("section", "task", "args", "kwargs", "broker", *ROUTE, "tries"),
)


def tell(
    path: str, upload_id: str, *, journal: Journal, queue_view: QueueView, hold_queue: HoldQueue
) -> Iterator[dict[str, Any] | None]:
    """Yield the story of a path, or of an upload. Before it yield None now and then.

    `upload_id` may be the beginning of an id. Raises WatchmanError if several ids begin with it.
    In the story, `story` has the records of the `LATEST` uploads, oldest first. `uploads` sums up
    the records of each upload. `earlier` counts the uploads before those. `now` has the rows of
    `watchman queue` for uploads that are not settled.
    """
    subject = path or upload_id
    loose: deque[Numbered] = deque(maxlen=LATEST)
    uploads: OrderedDict[str, list[Numbered]] = OrderedDict()
    earlier = 0
    # Only the first record of an upload has its path. Later ones have its id, so the search is also
    # for each id that was found.
    for number, record in enumerate(journal.records({subject}, uploads, upload_id)):
        if record is None:
            yield None
            continue
        of = record["id"] if "id" in record else record.get("of", {}).get("id")
        if of is None:
            loose.append((number, record))
            continue
        uploads.setdefault(of, []).append((number, record))
        if upload_id and len(uploads) > 1:
            some = ", ".join(uploads)
            raise WatchmanError(f"more than one id begins with {upload_id}: {some}, ...")
        if len(uploads) > LATEST:
            uploads.popitem(last=False)
            earlier += 1
    numbered = [*loose, *(record for records in uploads.values() for record in records)]
    story = [record for _, record in sorted(numbered, key=itemgetter(0))]
    told = [_sum_up(of, [record for _, record in one]) for of, one in uploads.items()]
    now = [row for row in hold_queue.rows() if subject in (row["path"], row["id"])]
    open_ids = {of for of, records in uploads.items() if not is_settled(records[-1][1])}
    if open_ids:
        for found in queue_view.select(Selection(frozenset(open_ids))):
            if found is None:
                yield None
            else:
                now.append(found.row())
    yield {"path": subject, "story": story, "uploads": told, "earlier": earlier, "now": now}


def is_settled(record: Mapping[str, Any]) -> bool:
    """Whether an upload is settled after this record of it."""
    # A mover writes RENAMED, with the whole upload, before a file goes to another destination.
    return record["event"] in SETTLED or (
        record["event"] == State.RENAMED and "state" not in record
    )


def _sum_up(upload_id: str, records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sum up an upload's records: whose it was, where it went, and each try."""
    told: dict[str, Any] = dict.fromkeys(FIELDS)
    told |= {"id": upload_id, "tries": []}
    for record in records:
        if "state" in record:
            told |= _of_upload(record)
        if attempt := _try_in(record, told):
            told["tries"].append(attempt)
        if record["event"] != TRIED:
            told |= {"state": record["event"], "at": record.get("at", record.get("accepted"))}
            told["reason"] = record.get("reason")
        told |= {name: record[name] for name in ROUTE if name in record}
    return told


def _of_upload(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of an upload from a record that holds the whole upload."""
    told: dict[str, Any] = {name: record.get(name, "") for name in AS_THEY_ARE}
    told |= {"size": FileState.decode(record["state"]).size, "accepted": record["accepted"]}
    told |= {"move": record.get("move"), "destination": record.get("destination")}
    task = record["task"] or {}
    told |= {"section": task.get("section"), "task": task.get("name")}
    return told | {name: task.get(name) for name in ("broker", "args", "kwargs")}


def _try_in(record: Mapping[str, Any], told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the try that a record is about: its time, place, number and answer; None if none."""
    broker, move = f"broker:{told['broker']}", f"move:{told['move']}"
    match record["event"]:
        case event if event == TRIED:
            place, answer = record["place"], record["answer"]
        case State.MOVED:
            place, answer = move, "moved"
        case State.DONE if told["task"]:
            place, answer = broker, record.get("answer", "sent")
        case State.FAILED if NEVER_WAITED not in record:
            place = broker if told["broker"] else move
            answer = record["reason"]
        case _:
            return None
    number = record.get("try", 1)
    return {"at": record.get("at"), "place": place, "number": number, "answer": answer}
