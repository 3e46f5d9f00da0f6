"""`response_format` as a grammar that the answer must match, judged before anything is computed.

A schema is a client's. It is compiled first in a process of its own, which is ended when it takes too long.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from inlay.generation.constraint import MASK_LIMITS
from inlay.serving.engine import Refusal
from inlay.typed_json import JsonObject

MOST_BYTES: Final = 64 * 1024
"""Of a schema."""
MOST_DEEP: Final = 16
"""Schemas in schemas."""
MOST_SECONDS: Final = 2.0
"""For compiling a schema, with the start of the process."""
_MOST_COMPILING_S: Final = 0.5
"""For compiling alone: the engine does it again, between two steps."""

WHITE_SPACE: Final = r"[ \n\t]{0,40}"
"""Bounded, so that no answer is white space for ever."""

_TRIAL: Final = """
import resource, sys, time
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
bytes_alone = LLTokenizer("byte")
began = time.process_time()
matcher = LLMatcher(bytes_alone, sys.stdin.read(), log_level=0, limits=LLParserLimits({limits}))
for _ in range(4):  # some limits are met only after the first characters
    bits = int.from_bytes(matcher.compute_bitmask(), "little")
    if matcher.is_stopped():
        break
    matcher.consume_token(next((byte for byte in (*b'{{["', *range(126, 31, -1)) if bits >> byte & 1), 10))
print("slow" if time.process_time() - began > {seconds} else "error" if matcher.is_error() else "fine")
print(matcher.get_error())
"""


def json_grammar(schema: JsonObject | bool | None, param: str = "response_format") -> str:
    """The grammar of JSON that fits the schema; None is any object. It takes up to `MOST_SECONDS`, so call it in a thread.

    Raises: Refusal 400 for a schema that is too large, too deep or too slow, that no JSON fits, or that has a keyword that is
    not supported, which is named.
    """
    value: Any = {"type": "object"} if schema is None else schema
    _require_small(value, param)
    return _compiled(json.dumps(value, ensure_ascii=False), param)


def lark_grammar(lark: str, schemas: Sequence[Any], param: str) -> str:
    """The grammar of a text in llguidance's form of lark, with schemas of a client in it. Raises: Refusal, as `json_grammar`."""
    _require_small(list(schemas), param)
    return _compiled_lark(lark, param)


def _require_small(value: Any, param: str) -> None:
    text = json.dumps(value, ensure_ascii=False)
    if len(text.encode()) > MOST_BYTES:
        raise _refused(
            f"{param}: the schema has {len(text.encode()):,} bytes. At most {MOST_BYTES:,} are allowed.", param
        )
    if _depth(value) > 2 * MOST_DEEP:
        raise _refused(f"{param}: the schema is more than {MOST_DEEP} schemas deep. Write it flatter.", param)


@lru_cache(256)
def _compiled(schema: str, param: str) -> str:
    from llguidance import LLMatcher

    # nothing of a client's may change how it is compiled, as its own "x-guidance" would
    value = json.loads(schema)
    if isinstance(value, dict) and "x-guidance" in value:
        raise _refused(f'{param}: the keyword "x-guidance" is not supported. Leave it out.', param)
    options = {"whitespace_flexible": True, "whitespace_pattern": WHITE_SPACE, "lenient": False}
    grammar = str(LLMatcher.grammar_from_json_schema(schema, overrides=options))
    _try(grammar, param)
    return grammar


@lru_cache(256)
def _compiled_lark(lark: str, param: str) -> str:
    from llguidance import LLMatcher

    grammar = str(LLMatcher.grammar_from_lark(lark))
    _try(grammar, param)
    return grammar


def _try(grammar: str, param: str) -> None:
    """Compiles a grammar apart. Raises: Refusal."""
    slow = _refused(f"{param}: the schema takes too long to compile. Make it smaller, or its patterns simpler.", param)
    limits = ", ".join(f"{name}={value}" for name, value in MASK_LIMITS.items())
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL.format(seconds=_MOST_COMPILING_S, limits=limits)],
            input=grammar, capture_output=True, text=True, encoding="utf-8", timeout=MOST_SECONDS,
            env=os.environ | {"PYTHONUTF8": "1"}, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise slow from None
    outcome, _, message = done.stdout.partition("\n")
    if outcome == "error":
        raise _refused(f"{param}: {_in_words(message.strip())}", param)
    if outcome != "fine":  # too slow, or ended for its memory
        raise slow


def _in_words(message: str) -> str:
    """A finding of llguidance for whoever wrote the schema."""
    if found := re.search(r"Unimplemented keys: (\[.*?\])", message, re.S):
        names = ", ".join(repr(name) for name in json.loads(found[1]))
        return f"the schema has the keyword {names}, which is not supported. Leave it out."
    if "oneOf constraints are not supported" in message:
        return "the schema has the keyword 'oneOf', which is not supported. Write anyOf."
    if message.startswith("NoExtension"):
        return "no JSON fits the schema."
    message = message.partition("<state>")[0].partition(";")[0]
    return f"the schema cannot be used: {' '.join(message.split())[:500]}"


def _depth(value: Any) -> int:
    """Lists and objects in each other, at most."""
    deepest, left = 0, [(value, 1)]
    while left:
        one, depth = left.pop()
        if isinstance(one, dict | list):
            deepest = max(deepest, depth)
            left += [(part, depth + 1) for part in (one.values() if isinstance(one, dict) else one)]
    return deepest


def _refused(message: str, param: str) -> Refusal:
    return Refusal(400, message, code="unsupported_schema", param=param)
