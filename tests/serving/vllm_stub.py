"""A process that speaks vLLM's protocol without a model. It prints its port.

An answer follows from the prompt, the seed and the bytes of the adapter's file; its text tells which adapter it was.
Run: python vllm_stub.py '{"key": "secret", "gap_s": 0.001, "die_after": null}'
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

OPTIONS: dict[str, Any] = {"key": "", "gap_s": 0.0, "die_after": None, "models": ["base"], "port": 0, "end_id": None}


class Stub:
    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.adapters: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.live = self.cancelled = self.tokens = 0

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                _, path, _ = head.split(" ", 2)
                fields = {
                    name.lower(): value.strip() for name, _, value in (one.partition(":") for one in head.split("\r\n"))
                }
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                if self.options["key"] and fields.get("authorization") != f"Bearer {self.options['key']}":
                    self.whole(writer, 401, {"error": {"message": "no key"}})
                    continue
                await self.answer(path, json.loads(body) if body else {}, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    def whole(self, writer: asyncio.StreamWriter, status: int, content: Any) -> None:
        body = json.dumps(content).encode()
        writer.write(f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)

    async def answer(
        self, path: str, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if path == "/v1/models":
            found = [{"id": name, "max_model_len": 256} for name in self.options["models"]]
            return self.whole(
                writer, 200, {"data": [*found, *({"id": name, "parent": "base"} for name in self.adapters)]}
            )
        if path == "/stub":
            found = {"adapters": self.adapters, "asked": self.asked, "live": self.live, "cancelled": self.cancelled}
            return self.whole(writer, 200, found)
        name = body.get("lora_name", "")
        if path == "/v1/load_lora_adapter":
            if name in self.adapters:
                return self.whole(
                    writer, 400, {"error": {"message": f"The lora adapter '{name}' has already been loaded."}}
                )
            folder = Path(body["lora_path"])
            settings = json.loads((folder / "adapter_config.json").read_text())
            if settings["r"] != settings["lora_alpha"] or settings.get("rank_pattern") or settings.get("use_dora"):
                return self.whole(writer, 400, {"error": {"message": "not flat"}})
            self.adapters[name] = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()
            return self.whole(writer, 200, {})
        if path == "/v1/unload_lora_adapter":
            known = self.adapters.pop(name, None)
            return self.whole(writer, 200 if known else 404, {})
        if path != "/v1/completions" or (body["model"] != "base" and body["model"] not in self.adapters):
            return self.whole(writer, 404, {"error": {"message": f"no {path} for {body.get('model')}"}})
        self.asked.append({name: value for name, value in body.items() if name != "prompt"})
        if body["prompt"] == [13]:
            return self.whole(writer, 400, {"error": {"message": "an unlucky prompt", "code": 400}})
        return await self.completion(body, reader, writer)

    async def completion(
        self, body: dict[str, Any], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        who = self.adapters.get(body["model"], "base")
        ids = ids_of(who, body["prompt"], body["seed"], body["max_tokens"])
        if not body.get("stream"):
            logprobs = [None, *({str(id_): {"logprob": -1.0, "rank": 1}} for id_ in body["prompt"][1:])]
            text = who[:12] + "".join(f" {id_}" for id_ in ids)
            choice = {"text": text, "token_ids": ids, "finish_reason": "length", "prompt_logprobs": logprobs,
                      "prompt_token_ids": body["prompt"], "logprobs": logprobs_of(ids, body)}  # fmt: skip
            return self.whole(writer, 200, {"choices": [choice]})
        self.live += 1
        is_whole = False
        try:
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            for number, id_ in enumerate(ids):
                if self.options["die_after"] is not None and self.tokens >= self.options["die_after"]:
                    os._exit(9)
                await asyncio.sleep(self.options["gap_s"])
                if writer.is_closing() or reader.at_eof():
                    return None
                self.tokens += 1
                text = (who[:12] if number == 0 else "") + f" {id_}"
                finish = "length" if number == len(ids) - 1 else None
                choice = {
                    "text": text,
                    "token_ids": [id_],
                    "finish_reason": finish,
                    "logprobs": logprobs_of([id_], body),
                }
                self.event(writer, json.dumps({"choices": [choice]}))
                await writer.drain()
            self.event(writer, "[DONE]")
            writer.write(b"0\r\n\r\n")
            is_whole = True
        finally:
            self.live -= 1
            self.cancelled += not is_whole

    def event(self, writer: asyncio.StreamWriter, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        writer.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")


def ids_of(who: str, prompt: list[int], seed: int, count: int) -> list[int]:
    """Ids of letters, from what an answer depends on."""
    digest = hashlib.sha256(repr((who, prompt, seed)).encode()).digest()
    return [40 + digest[n % 32] % 60 for n in range(count)]


def logprobs_of(ids: list[int], body: dict[str, Any]) -> Any:
    if body.get("logprobs") is None:
        return None
    top = [{f"token_id:{id_}": -0.5, f"token_id:{id_ + 1}": -2.0} for id_ in ids]
    return {"tokens": [f"token_id:{id_}" for id_ in ids], "token_logprobs": [-0.5] * len(ids), "top_logprobs": top}


async def main(options: dict[str, Any]) -> None:
    server = await asyncio.start_server(Stub(options).connection, "127.0.0.1", options["port"])
    print(server.sockets[0].getsockname()[1], flush=True)  # noqa: T201 -- whoever started it reads this
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(OPTIONS | json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}")))
