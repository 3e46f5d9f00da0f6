"""An engine child without a model: it answers `max_new_tokens` times `word `, one token each 10 ms."""

from __future__ import annotations

import time

from inlay.generation.request import Ask, Event
from inlay.serving import wire
from inlay.serving.child_process import Front
from inlay.typed_json import JsonObject


def main() -> None:
    front = Front()
    start = front.next()["start"]
    if start["base"] == "unknown":
        front.send({"failed": "--model unknown: no such folder.", "exit_code": 2})
        return
    front.send({"progress": "Loading the weights."})
    time.sleep(float(start["settings"].get("loading_s", 0)))
    loaded = {name: adapter(ref) for name, ref in start["adapters"].items()}
    ready = {"base": "base-1", "identity": "b" * 64, "adapters": loaded}
    front.send({"ready": ready, "state": state({})})
    live: dict[int, list[Ask | int]] = {}
    while True:
        while front.has_message() or not live:
            take(front, front.next(), live)
        time.sleep(0.01)
        events = []
        for number, (ask, done) in list(live.items()):
            assert isinstance(ask, Ask)
            assert isinstance(done, int)
            live[number][1] = done + 1
            is_last = done + 1 >= ask.sampling.max_new_tokens
            word = "word " if ask.adapter is None else f"{ask.adapter} "
            events.append([number, wire.event_to_json(Event(0, (1,), word, finish="length" if is_last else None))])
            if is_last:
                del live[number]
        report(front, live, events)


def take(front: Front, message: JsonObject, live: dict[int, list[Ask | int]]) -> None:
    if "add" in message:
        live[message["add"]] = [wire.ask_from_json(message["ask"]), 0]
    elif "cancel" in message:
        live.pop(message["cancel"], None)
    elif "load" in message and message["ref"].startswith("bad"):
        refusal = wire.Refusal(404, "no such adapter", code="adapter_not_found", param="ref")
        front.send({"number": message["load"], "refused": wire.refusal_to_json(refusal)})
    elif "load" in message:
        front.send({"loaded": message["load"], "adapter": adapter(message["ref"])})
    report(front, live, [])


def adapter(ref: str) -> JsonObject:
    return {"digest": f"digest-{ref}", "identity": f"identity-{ref}", "ref": ref, "bytes": 1000, "note": ""}


def report(front: Front, live: dict[int, list[Ask | int]], events: list[object]) -> None:
    front.send({"events": events, "state": state(live)})


def state(live: dict[int, list[Ask | int]]) -> JsonObject:
    return {"condition": "ready", "running": len(live), "context_length": 1_000_000, "figures": {"live": len(live)}}


if __name__ == "__main__":
    main()
