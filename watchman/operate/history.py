"""The story of a path or of one upload: what the journal and the history tell of it."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from watchman.dispatch.hold_queue import HoldQueue
from watchman.operate.queue_view import QueueView, Selection
from watchman.store.journal import Journal
from watchman.uploads.upload import State

#: Uploads of one path, and records that belong to none, that are told of: the latest.
LATEST = 20

#: Events after which an upload is settled.
SETTLED = frozenset(
    state.value for state in (State.DONE, State.SUPERSEDED, State.GONE, State.DROPPED)
)

#: A record, and where it stands among others.
Numbered = tuple[int, dict[str, Any]]


def tell(
    subject: str, *, journal: Journal, queue_view: QueueView, hold_queue: HoldQueue
) -> Iterator[dict[str, Any] | None]:
    """Yield the story of a path or an upload's id, and None now and then before it.

    `story` has the records, oldest first, of `LATEST` uploads, and `earlier` counts those
    before them; `now` is how what is not settled stands, as `watchman queue` has it.
    """
    loose: deque[Numbered] = deque(maxlen=LATEST)
    uploads: OrderedDict[str, list[Numbered]] = OrderedDict()
    earlier = 0
    # An upload's later records name its id alone.
    for number, record in enumerate(journal.records({subject}, uploads)):
        if record is None:
            yield None
        elif "id" not in record:
            loose.append((number, record))
        else:
            uploads.setdefault(record["id"], []).append((number, record))
            if len(uploads) > LATEST:
                uploads.popitem(last=False)
                earlier += 1
    numbered = [*loose, *(record for records in uploads.values() for record in records)]
    story = [record for _, record in sorted(numbered, key=itemgetter(0))]
    now = [row for row in hold_queue.rows() if subject in (row["path"], row["id"])]
    open_ids = {i for i, records in uploads.items() if records[-1][1]["event"] not in SETTLED}
    if open_ids:
        for found in queue_view.select(Selection(frozenset(open_ids))):
            if found is None:
                yield None
            else:
                now.append(found.row())
    yield {"path": subject, "story": story, "earlier": earlier, "now": now}
