"""Server-sent events: read from bytes cut anywhere, followed across broken connections."""

from __future__ import annotations

from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_service.client import Event, parse_events
from hpo_service.domain.errors import NotFound

STREAM = (
    b": welcome\r\n\r\n"
    b'id: 7\nevent: trial\ndata: {"number": 3,\ndata: "state": "COMPLETE"}\n\n'
    b": ping\n\n"
    b'id: 8\r\nevent: study\r\ndata:{"name": "m\xc3\xbcde"}\r\n\r\n'
    b"retry: 100\n\n"
    b'id: 9\nevent: trial\ndata: {"cut"'
)
EVENTS = [Event("7", "trial", {"number": 3, "state": "COMPLETE"}), Event("8", "study", {"name": "müde"})]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts):
    places = [0, *sorted(cuts), len(STREAM)]
    chunks = [STREAM[start:end] for start, end in pairwise(places)]
    assert list(parse_events(chunks)) == EVENTS


def test_a_broken_stream_is_taken_up_after_the_last_event(client, script, answering):
    answering(
        answering.answer(200, STREAM, {"Content-Type": "text/event-stream"}),
        answering.answer(200, b'id: 9\nevent: trial\ndata: {"number": 4}\n\n', {"Content-Type": "text/event-stream"}),
    )
    events = list(islice(client.events("mine", last_event_id="6"), 3))
    assert [event.id for event in events] == ["7", "8", "9"]
    assert [request.headers["Last-Event-ID"] for request in script.requests] == ["6", "8"]


def test_following_a_study_that_is_gone_ends(client, answering):
    answering(answering.problem(404, "not_found"))
    with pytest.raises(NotFound):
        next(client.events("mine"))
