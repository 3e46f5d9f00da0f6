"""A server of OpenAI's API with known delays: each token at its moment, which it tells in the event. It prints its port.

Run: python paced_server.py '{"first_s": 0.05, "gap_s": 0.01, "tokens": 20}'
Options: first_s, gap_s, tokens; at_once (requests beside each other, the others wait), most (more are refused with 429),
framing (chunked; close: the body ends with the connection; vanish: chunked, then closed without a word), models (names), completions (whether /v1/chat/completions is unknown).
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

OPTIONS: dict[str, Any] = {
    "first_s": 0.05, "gap_s": 0.01, "tokens": 20, "at_once": 10_000, "most": 10_000, "framing": "chunked",
    "models": ["a", "base", "b"], "completions": False,
}  # fmt: skip


class Server:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.room = asyncio.Semaphore(options["at_once"])
        self.live = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                method, path, _ = head.split(" ", 2)
                length = next(
                    (int(line[15:]) for line in head.split("\r\n") if line.lower().startswith("content-length:")), 0
                )
                body = await reader.readexactly(length)
                await self.answer(method, path, json.loads(body) if body else {}, writer)
                if self.options["framing"] in ("close", "vanish"):
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def answer(self, method: str, path: str, body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        options = self.options
        if path == "/v1/models":
            return self.whole(
                writer,
                200,
                {
                    "data": [
                        {"id": name, **({"inlay": {"kind": "base"}} if name == "base" else {})}
                        for name in options["models"]
                    ]
                },
            )
        if path == "/metrics":
            return self.whole(writer, 200, 'inlay:kv_bytes{part="keys"} 4096\ninlay:requests_total 7\n')
        if path == "/health":
            return self.whole(writer, 200, {"status": "ready", "memory": {"weights_bytes": 1024}})
        if method != "POST" or (options["completions"] and "chat" in path):
            return self.whole(writer, 404, {"error": {"message": "no such route"}})
        if body["model"] not in options["models"]:
            return self.whole(writer, 404, {"error": {"message": f"no model {body['model']}"}})
        if self.live >= options["most"]:
            return self.whole(writer, 429, {"error": {"message": "full"}})
        self.live += 1
        try:
            async with self.room:
                await self.stream(writer, "chat" in path)
        finally:
            self.live -= 1

    def whole(self, writer: asyncio.StreamWriter, status: int, content: Any) -> None:
        body = (content if isinstance(content, str) else json.dumps(content)).encode()
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def stream(self, writer: asyncio.StreamWriter, is_chat: bool) -> None:
        options, began_s = self.options, time.perf_counter()
        is_chunked = options["framing"] != "close"
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        writer.write((head + ("Transfer-Encoding: chunked\r\n\r\n" if is_chunked else "\r\n")).encode())

        def send(data: str) -> None:
            event = f"data: {data}\n\n".encode()
            writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n" if is_chunked else event)

        if is_chat:
            send(json.dumps({"choices": [{"delta": {"role": "assistant", "content": ""}}]}))
        for number in range(options["tokens"]):
            due_s = began_s + options["first_s"] + number * options["gap_s"]
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            text = f"{time.perf_counter():.6f} "
            send(json.dumps({"choices": [{"delta": {"content": text}} if is_chat else {"text": text}]}))
        send(json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]}))
        send(json.dumps({"choices": [], "usage": {"completion_tokens": options["tokens"], "prompt_tokens": 10}}))
        send("[DONE]")
        writer.write(b"0\r\n\r\n" if is_chunked else b"")
        await writer.drain()


async def main(options: dict[str, Any]) -> None:
    server = await asyncio.start_server(Server(options).connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 -- whoever started it reads this
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
