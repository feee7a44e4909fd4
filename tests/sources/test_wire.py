"""The socket's language, in any pieces."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from watchman.errors import RequestRefused
from watchman.sources.socket import wire

names = st.binary(min_size=1, max_size=40).map(
    lambda name: name.replace(b"\0", b"-").decode(errors="surrogateescape")
)


@given(st.lists(names, min_size=1), st.integers(min_value=1, max_value=50))
def test_requests_come_out_as_they_went_in_whatever_pieces_they_arrive_in(paths, size):
    stream = b"".join(wire.encode("resubmit", {"path": path}) for path in paths)
    splitter = wire.Splitter()
    found = []
    for start in range(0, len(stream), size):
        splitter.feed(stream[start : start + size])
        while (request := splitter.take()) is not None:
            found.append(wire.decode(request))
    assert found == [{"event": "resubmit", "path": path} for path in paths]
    assert not splitter.unfinished


@given(st.text())
def test_an_answer_is_one_printable_line(text):
    line = wire.line("ERROR", text)
    assert line.endswith(b"\n")
    assert line[:-1].decode().isprintable()


def test_a_request_of_exactly_the_limit_is_taken_and_one_byte_more_is_refused():
    room = wire.REQUEST_LIMIT - len(wire.encode("explain", {"path": ""}))
    request = wire.encode("explain", {"path": "x" * room})
    splitter = wire.Splitter()
    splitter.feed(request)
    assert wire.decode(splitter.take() or b"")["path"] == "x" * room
    with pytest.raises(RequestRefused, match="65537 bytes long"):
        wire.encode("explain", {"path": "x" * (room + 1)})
    splitter.feed(request.replace(b"x", b"xx", 1))
    with pytest.raises(RequestRefused, match="more than 65536 bytes"):
        splitter.take()


def test_a_value_with_a_nul_is_not_sent():
    with pytest.raises(RequestRefused, match="path holds a NUL"):
        wire.encode("explain", {"path": "/a\0event=resubmit"})
