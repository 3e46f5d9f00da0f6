"""An encoding child without a tokenizer: each character of the last message is an id."""

from __future__ import annotations

import time

from inlay.serving.child_process import Front
from inlay.typed_json import JsonObject


def reply(message: JsonObject) -> JsonObject:
    if "chat" in message or "text" in message:
        text = message["chat"]["messages"][-1]["content"] if "chat" in message else message["text"]
        while text == "HANG":
            time.sleep(1)
        return {"encoded": {"ids": [ord(one) for one in text], "text": text, "stop": []}}
    return {}


if __name__ == "__main__":
    front = Front()
    front.next()
    front.send({"ready": True})
    while True:
        front.send(reply(front.next()))
