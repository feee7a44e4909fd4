"""The story of a path or of one upload: its records in the journal and in the history."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator
from operator import itemgetter
from typing import Any

from watchman.dispatch.hold_queue import HoldQueue
from watchman.operate.queue_view import QueueView, Selection
from watchman.store.journal import Journal
from watchman.uploads.upload import State

#: The latest uploads of a path, and the latest records that belong to no upload, that are shown.
LATEST = 20

#: Events of the journal after which an upload is settled.
SETTLED = frozenset(
    state.value for state in (State.DONE, State.SUPERSEDED, State.GONE, State.DROPPED)
)

#: A record with its number, which gives the order.
Numbered = tuple[int, dict[str, Any]]


def tell(
    subject: str, *, journal: Journal, queue_view: QueueView, hold_queue: HoldQueue
) -> Iterator[dict[str, Any] | None]:
    """Yield the story of a path or of an upload's id; before that None now and then.

    `story` has the records of the `LATEST` uploads, oldest first. `earlier` counts the uploads
    before those. `now` has the rows of `watchman queue` for uploads that are not settled.
    """
    loose: deque[Numbered] = deque(maxlen=LATEST)
    uploads: OrderedDict[str, list[Numbered]] = OrderedDict()
    earlier = 0
    # Only the first record of an upload has its path; the later ones have its id, so ids that were
    # found are searched for, too.
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
