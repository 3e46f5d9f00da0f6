"""The encoding child of the server: prompts to ids by the chat template of the base or of an adapter.

A chat template is a program of somebody else's. It runs here, apart from the front and the model, with little memory and
for at most `BUDGET_S`. The front ends the process where even that does not stop it.
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

import psutil

from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.special_tokens import SpecialTokenError
from inlay.data.encoding.template_kwargs import switches_read
from inlay.data.reading.conversation import openai_turns
from inlay.data.reading.tool_calls import tools
from inlay.data.types import Message, Row, Source
from inlay.errors import InlayError
from inlay.generation.text import BYTE_OF, decoder_stages
from inlay.serving import wire
from inlay.serving.child_process import Front
from inlay.serving.engine import CallForm, ChatPrompt, EncodedPrompt, Refusal
from inlay.serving.opening import adapter, opened, opened_base
from inlay.serving.tools import form_of
from inlay.serving.wire import Start
from inlay.typed_json import JsonObject, decode, encode

BUDGET_S: Final = 1.5
"""For one prompt; the front waits half a second longer."""
MOST_CHARACTERS: Final = 4_000_000
"""Of the texts of one prompt."""
_OPENING_S: Final = 60.0
"""For a tokenizer and its template."""
_MEMORY_BYTES, _OPENING_BYTES = 1 << 30, 4 << 30
"""That a prompt may take beside what is held, and a tokenizer with its template while it is opened."""
_REQUEST: Final = Source("request", 1)
_BYTE: Final = re.compile("<0x([0-9A-F]{2})>")


class _TooLong(BaseException):
    """Raised by the alarm; no `except Exception` of a template or library stops it."""


class Encoders:
    """The encoder of the base and those of adapters with a tokenizer or template of their own."""

    def __init__(self, start: Start) -> None:
        """Raises: ModelError, RunError, AdapterError where there is no such base or its template cannot be used."""
        self._start = start
        self._refs: dict[str, str] = {}
        self._opened: dict[str | None, Encoder] = {}
        self._call_forms: dict[str | None, CallForm | None] = {}
        self._encoder(None)
        for identity, ref in start.own.items():
            self.add(identity, ref)

    def add(self, identity: str, ref: str) -> None:
        """Opens the encoder of an adapter; later prompts name it by its identity. Raises: AdapterError, ModelError."""
        self._refs[identity] = ref
        try:
            self._encoder(identity)
        except BaseException:
            self.remove(identity)
            raise

    def remove(self, identity: str) -> None:
        """Forgets an adapter's encoder."""
        self._refs.pop(identity, None)
        self._opened.pop(identity, None)
        self._call_forms.pop(identity, None)

    def chat(self, prompt: ChatPrompt) -> EncodedPrompt:
        """The ids of a conversation and of the opening of an answer. Raises: Refusal."""
        encoder = self._encoder(prompt.identity)
        if prompt.identity is None and encoder.own_template:
            text = "messages: this base has no chat template. Send a text to /v1/completions, or name an adapter."
            raise _refused(text, "messages", "no_chat_template")
        _refuse_large(prompt)
        row = Row({"messages": list(prompt.messages), "tools": list(prompt.tools)}, _REQUEST)
        messages, known = openai_turns(row, "messages", row.value["messages"], trained=False), tools(row)
        read = switches_read(encoder.tokenizer.chat_template)
        for name in prompt.switches:
            if name not in read:
                can = f"It reads {', '.join(read)}." if read else "It reads none."
                raise _refused(
                    f"chat_template_kwargs.{name}: the chat template reads no such switch. {can}",
                    "chat_template_kwargs",
                )
        found = self._prompt(encoder, messages, known, tuple(sorted(prompt.switches.items())))
        return replace(found, calls=self._call_form(prompt.identity)) if known else found

    def _call_form(self, identity: str | None) -> CallForm | None:
        if identity not in self._call_forms:
            self._call_forms[identity] = form_of(self._encoder(identity).answer_with_calls)
        return self._call_forms[identity]

    def text(self, text: str, identity: str | None) -> EncodedPrompt:
        """The ids of a text as it is. Raises: Refusal."""
        if len(text) > MOST_CHARACTERS:
            raise _refused(f"prompt: has {len(text):,} characters. At most {MOST_CHARACTERS:,} are allowed.", "prompt")
        return self._prompt(self._encoder(identity), [Message("text", text)], (), ())

    def token_texts(self, ids: Sequence[int], identity: str | None) -> list[bytes]:
        """The bytes of each token."""
        tokenizer = self._encoder(identity).tokenizer
        added = tokenizer.added_tokens_decoder
        is_byte_level = '"ByteLevel"' in decoder_stages(tokenizer.backend_tokenizer)
        found = []
        for id_ in ids:
            text = tokenizer.convert_ids_to_tokens(int(id_)) or ""
            if int(id_) in added:
                found.append(text.encode())
            elif is_byte_level:
                found.append(b"".join(bytes([BYTE_OF[one]]) if one in BYTE_OF else one.encode() for one in text))
            elif byte := _BYTE.fullmatch(text):
                found.append(bytes([int(byte[1], 16)]))
            else:
                found.append(text.replace("▁", " ").encode())
        return found

    def forget(self) -> None:
        """Has every encoder opened anew: what was cut short may have left its caches half filled."""
        self._opened = {}

    def _prompt(self, encoder: Encoder, messages: Any, known: Any, switches: Any) -> EncodedPrompt:
        ids = encoder.prompt(messages, known, switches)
        stop = (encoder.written_end,) if encoder.written_end else ()
        return EncodedPrompt(tuple(ids), str(encoder.tokenizer.decode(ids)), stop)

    def _encoder(self, identity: str | None) -> Encoder:
        if identity not in self._opened:
            if identity is not None and identity not in self._refs:
                raise Refusal(503, "the adapter is not in memory (any more)", code="adapter_gone", retry_after_s=1)
            self._opened[identity] = self._open(identity)
        return self._opened[identity]

    def _open(self, identity: str | None) -> Encoder:
        if identity is None:
            return opened_base(self._start).encoder
        named = adapter(self._start, self._refs[identity])
        if named.entry is not None:
            card = named.entry.card
            for other in self._opened.values():
                if (other.tokenizer_hash, other.template_hash) == (card.tokenizer_hash, card.chat_template_hash):
                    return other
        return opened(named).encoder


def answer(encoders: Encoders, message: JsonObject) -> JsonObject:
    """The reply to a message of the front."""
    try:
        with _limited(_OPENING_S if "own" in message else BUDGET_S):
            return _reply(encoders, message)
    except Refusal as refusal:
        return {"refused": wire.refusal_to_json(refusal)}
    except SpecialTokenError as error:
        place = "tools" if error.turn is None else f"messages[{error.turn}]"
        text = (
            f"{place}: contains {error.token!r}, which this model reads as the mark of a turn and not as text. "
            "Take it out, or write it otherwise."
        )
        return {"refused": wire.refusal_to_json(_refused(text, place, "special_token"))}
    except InlayError as error:
        text = str(error).removeprefix(f"{_REQUEST}: ").removeprefix("prompt:1: ")
        return {"refused": wire.refusal_to_json(_refused(text, None))}
    except _TooLong:
        encoders.forget()
        return {"refused": wire.refusal_to_json(wire.template_too_long(BUDGET_S))}
    except (MemoryError, RecursionError) as error:
        encoders.forget()
        what = "memory" if isinstance(error, MemoryError) else "nesting"
        text = f"the chat template needs too much {what} for this conversation. Shorten it."
        return {"refused": wire.refusal_to_json(_refused(text, "messages", "template_failed"))}
    except Exception:  # noqa: BLE001 -- a bug; its traceback goes to the log of this process
        traceback.print_exc()
        encoders.forget()
        text = "The prompt could not be encoded; the server's log says why."
        return {"refused": wire.refusal_to_json(Refusal(500, text, code="internal_error"))}


def _reply(encoders: Encoders, message: JsonObject) -> JsonObject:
    if "chat" in message:
        return {"encoded": encode(encoders.chat(ChatPrompt(**message["chat"])))}
    if "text" in message:
        return {"encoded": encode(encoders.text(message["text"], message.get("identity")))}
    if "token_texts" in message:
        found = encoders.token_texts(message["token_texts"], message.get("identity"))
        return {"texts": [one.hex() for one in found]}
    if "own" in message:
        encoders.add(message["own"], message["ref"])
    elif "drop" in message:
        encoders.remove(message["drop"])
    return {}


def _refused(text: str, param: str | None, code: str = "invalid_prompt") -> Refusal:
    return Refusal(400, text, code=code, param=param)


def _refuse_large(prompt: ChatPrompt) -> None:
    size = len(json.dumps([*prompt.messages, *prompt.tools], ensure_ascii=False))
    if size > MOST_CHARACTERS:
        raise _refused(f"messages: have {size:,} characters. At most {MOST_CHARACTERS:,} are allowed.", "messages")


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Inside, at most so many seconds pass while Python itself is running."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _limit_memory(more: int) -> None:
    """Lets this process take so many bytes beside what it has."""
    import resource  # Windows has none, and no server

    most = psutil.Process().memory_info().vms + more
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def on_alarm(*_signal_and_frame: object) -> None:
    """Handler of SIGALRM."""
    raise _TooLong


def main() -> None:
    """Answers the messages of the front, one after the other."""
    front = Front()
    signal.signal(signal.SIGALRM, on_alarm)
    try:
        with _limited(_OPENING_S):
            _limit_memory(_OPENING_BYTES)
            encoders = Encoders(decode(Start, front.next()["start"]))
    except InlayError as error:
        front.send({"failed": str(error), "exit_code": error.exit_code})
        return
    except _TooLong:
        front.send({"failed": f"the chat template of the base did not end within {_OPENING_S:g} s.", "exit_code": 2})
        return
    except MemoryError:
        front.send({"failed": "the chat template of the base needs more memory than a template may.", "exit_code": 2})
        return
    front.send({"ready": True})
    while True:
        message = front.next()
        _limit_memory(_OPENING_BYTES if "own" in message else _MEMORY_BYTES)
        front.send(answer(encoders, message))


if __name__ == "__main__":
    main()
