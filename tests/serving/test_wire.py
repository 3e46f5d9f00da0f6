"""What goes over the wire arrives as it was."""

from __future__ import annotations

import asyncio
import socket
import string

from hypothesis import given, settings
from hypothesis import strategies as st

from inlay.generation.request import Ask, Event, Sampling, TokenLogprob
from inlay.serving import wire

IDS = st.lists(st.integers(0, 2**31), max_size=4).map(tuple)
TEXTS = st.text(max_size=8).filter(lambda text: not any("\ud800" <= c <= "\udfff" for c in text))
NUMBERS = st.floats(-100, 0)
LOGPROBS = st.builds(
    TokenLogprob, st.integers(0, 99), NUMBERS, st.lists(st.tuples(st.integers(0, 9), NUMBERS), max_size=2).map(tuple)
)
SAMPLINGS = st.builds(
    Sampling, stop=st.lists(TEXTS, max_size=2).map(tuple), temperature=st.floats(0, 2), logprobs=st.none() | st.integers(0, 20),
    logit_bias=st.lists(st.tuples(st.integers(0, 99), st.floats(-100, 100)), max_size=2).map(tuple),
)  # fmt: skip
ASKS = st.builds(
    Ask, st.lists(st.integers(0, 2**31), min_size=1, max_size=4).map(tuple), SAMPLINGS, st.none() | st.text(string.hexdigits),
    st.binary(max_size=8), st.integers(0, 7), st.none() | TEXTS, st.booleans(),
)  # fmt: skip
EVENTS = st.builds(
    Event, st.integers(0, 99), IDS, TEXTS, st.lists(LOGPROBS, max_size=2).map(tuple),
    st.lists(st.none() | LOGPROBS, max_size=2).map(tuple), st.sampled_from([None, "stop", "length"]), TEXTS, st.integers(0, 9),
)  # fmt: skip


@settings(max_examples=60)
@given(ASKS, EVENTS)
def test_an_ask_and_an_event_arrive_as_they_were_sent(ask: Ask, event: Event) -> None:
    near, far = socket.socketpair()
    with near, far:
        near.sendall(wire.packed(wire.ask_to_json(ask)) + wire.packed(wire.event_to_json(event)))
        sent, told = wire.receive(far), wire.receive(far)
    assert sent is not None
    assert told is not None
    assert wire.ask_from_json(sent) == ask
    assert wire.event_from_json(told) == event


def test_the_other_side_going_away_ends_the_messages() -> None:
    async def read(data: bytes) -> list[object]:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        reader.feed_eof()
        return [await wire.received(reader), await wire.received(reader)]

    whole = wire.packed({"a": 1})
    assert asyncio.run(read(whole + whole[:-1])) == [{"a": 1}, None]
    near, far = socket.socketpair()
    with near, far:
        near.sendall(whole[:-1])
        near.close()
        assert wire.receive(far) is None
