"""An `Ask` as vLLM's `/v1/completions` takes it, and vLLM's answer as `Event`s. Prompts go as token ids, adapters by digest."""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final

from inlay.generation.request import Ask, Event, Finish, TokenLogprob
from inlay.serving.engine import Refusal
from inlay.typed_json import JsonObject

BASE: Final = "base"
"""The base's name in vLLM; an adapter's is the digest of its weights."""
_SEEDS: Final = 2**63


def request_of(ask: Ask, stop_ids: Collection[int]) -> JsonObject:
    """The body of the request. Raises: Refusal 400 for what vLLM does not compute."""
    sampling = ask.sampling
    if sampling.no_repeat_ngram_size:
        raise _unsupported("no_repeat_ngram_size")
    body: JsonObject = {
        "model": ask.adapter or BASE, "prompt": list(ask.prompt), "max_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1,
        "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
        "presence_penalty": sampling.presence_penalty, "frequency_penalty": sampling.frequency_penalty,
        "min_tokens": sampling.min_new_tokens, "ignore_eos": sampling.ignore_eos, "stop": list(sampling.stop),
        "seed": (sampling.seed + 1_000_003 * ask.choice) % _SEEDS, "return_token_ids": True,
        "return_tokens_as_token_ids": True, "stop_token_ids": [] if sampling.ignore_eos else sorted(stop_ids),
    }  # fmt: skip
    if sampling.logit_bias:
        body["logit_bias"] = {str(id_): bias for id_, bias in sampling.logit_bias}
    if sampling.logprobs is not None:
        body["logprobs"] = sampling.logprobs
    if ask.prompt_logprobs:
        body["prompt_logprobs"] = sampling.logprobs or 0
    if ask.grammar is not None:
        body["structured_outputs"] = _structured(ask.grammar)
    if ask.salt:
        body["cache_salt"] = ask.salt.hex()
    if not ask.prompt_logprobs:  # vLLM does not stream those of the prompt
        body["stream"] = True
    return body


def _structured(grammar: str) -> JsonObject:
    """vLLM's field for a grammar of llguidance, which it has two forms of."""
    parts = json.loads(grammar).get("grammars", [])
    if len(parts) == 1 and "json_schema" in parts[0]:
        return {"json": parts[0]["json_schema"]}
    if len(parts) == 1 and "lark_grammar" in parts[0]:
        return {"grammar": parts[0]["lark_grammar"]}
    raise _unsupported("a grammar of several parts")


def _unsupported(what: str) -> Refusal:
    return Refusal(400, f"{what}: the back end vllm does not compute it.", code="unsupported_parameter", param=what)


def events_of(data: bytes, stop_ids: Collection[int]) -> list[Event]:
    """The events of one chunk of a stream, or of a whole answer. Raises: Refusal for an error in it."""
    found = json.loads(data)
    if "error" in found:
        raise refusal_of(found, int(found["error"].get("code") or 500) if isinstance(found["error"], dict) else 500)
    return [_event(choice, stop_ids) for choice in found.get("choices") or ()]


def refusal_of(body: Any, status: int) -> Refusal:
    """vLLM's error as the client is to be entries it: its fault as it is, ours as one of the server."""
    error = body.get("error") if isinstance(body, dict) else None
    message = str(error.get("message") if isinstance(error, dict) else error or body)[:500]
    if status in (400, 422):
        return Refusal(400, message, code="invalid_request")
    place = f" (HTTP {status})" if status > 200 else ""
    return Refusal(503, f"vLLM could not answer{place}: {message}", code="backend_failed", retry_after_s=2)


def _event(choice: JsonObject, stop_ids: Collection[int]) -> Event:
    ids, logprobs = list(choice.get("token_ids") or ()), _logprobs(choice.get("logprobs"))
    finish = _FINISHES.get(choice.get("finish_reason") or "")
    if finish == "stop" and ids and ids[-1] in stop_ids and not isinstance(choice.get("stop_reason"), str):
        ids, logprobs = ids[:-1], logprobs[: len(ids) - 1]  # the end of the turn is no token of the answer
    prompt = choice.get("prompt_logprobs")
    prompt_ids = choice.get("prompt_token_ids") or ()
    reason = "vLLM ended the answer" if finish in ("failed", "cancelled") else ""
    return Event(
        0, tuple(ids), str(choice.get("text") or ""), tuple(logprobs),
        tuple(_of_prompt(prompt, prompt_ids)) if prompt else (), finish, reason,
    )  # fmt: skip


_FINISHES: Final[dict[str, Finish]] = {"stop": "stop", "length": "length", "abort": "cancelled", "error": "failed"}


def _logprobs(found: JsonObject | None) -> list[TokenLogprob]:
    if not found:
        return []
    tops = found.get("top_logprobs") or [None] * len(found["tokens"])
    return [
        TokenLogprob(_id(token), logprob, _sorted({_id(name): value for name, value in (top or {}).items()}))
        for token, logprob, top in zip(found["tokens"], found["token_logprobs"], tops, strict=True)
    ]


def _id(token: str) -> int:
    return int(token.removeprefix("token_id:"))


def _sorted(top: dict[int, float]) -> tuple[tuple[int, float], ...]:
    return tuple(sorted(top.items(), key=lambda pair: (-pair[1], pair[0])))


def _of_prompt(found: list[JsonObject | None], ids: Any) -> list[TokenLogprob | None]:
    """vLLM gives for each token of the prompt {id: {logprob, rank}} of itself and the most likely ones."""
    entries: list[TokenLogprob | None] = []
    for place, entry in enumerate(found):
        if entry is None:
            entries.append(None)
            continue
        values = {int(name): float(one["logprob"]) for name, one in entry.items()}
        own = int(ids[place]) if place < len(ids) else next(iter(values))
        entries.append(TokenLogprob(own, values[own], _sorted(values)))
    return entries
