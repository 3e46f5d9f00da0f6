"""The end of a verb: its result on stdout, one error block on stderr, and the exit code."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from typer import Abort, TyperException

from inlay.cli.render.usage_error import usage_text
from inlay.errors import InlayError, Interrupted

SIGINT_CODE, SIGPIPE_CODE = 130, 141
_CONTROLS = {chr(n) for n in (*range(32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))} - {
    "\n",
    "\t",
}
"""Characters that a terminal obeys, or that reorder a line."""


@dataclass(frozen=True, slots=True)
class Output:
    """A verb's result: the value for scripts, the text for people (None: it is on the screen already)."""

    value: Any
    text: str | None = None
    exit_code: int = 0


def finish(call: Callable[[], Any], as_json: bool) -> int:
    """The exit code of a verb, which is run, and whose result or error is printed."""
    debugging = bool(os.environ.get("INLAY_DEBUG"))
    try:
        with _stdout_kept_clean(as_json):
            result = call()
        if isinstance(result, int):  # the parser ended: help was shown, or Ctrl+C came in a verb
            return _interrupted(as_json) if result == SIGINT_CODE else result
        _print(result, as_json)
        return result.exit_code if isinstance(result, Output) else 0
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SIGPIPE_CODE
    except (Abort, EOFError, KeyboardInterrupt):
        return _interrupted(as_json)
    except TyperException as error:
        return _fail(f"error: {usage_text(error)}", 2, as_json)
    except InlayError as error:
        if debugging:
            traceback.print_exc()
        lead = "" if isinstance(error, Interrupted) else "error: "
        return _fail("\n".join([f"{lead}{error}", *getattr(error, "__notes__", [])]), error.exit_code, as_json)
    except Exception as error:  # noqa: BLE001 -- a bug; its traceback goes to a file, not to the user
        if isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that comes while a class is made
            return _interrupted(as_json)
        if debugging:
            traceback.print_exc()
        return _fail(f"internal error: {_kind(error)} (traceback in {_traceback_place(error)})", 1, as_json)


def _interrupted(as_json: bool) -> int:
    return _fail("interrupted; nothing was being trained.", SIGINT_CODE, as_json)


@contextlib.contextmanager
def _stdout_kept_clean(as_json: bool) -> Iterator[None]:
    """With --json whatever a library prints goes to stderr: stdout holds one value."""
    if not as_json:
        yield
        return
    with contextlib.redirect_stdout(sys.stderr):
        yield


def _print(result: Any, as_json: bool) -> None:
    if not isinstance(result, Output) or os.environ.get("RANK", "0") != "0":  # of several processes the first speaks
        return
    if as_json:
        sys.stdout.write(json_text(result.value) + "\n")
    elif result.text is not None:
        sys.stdout.write(result.text + "\n")
    sys.stdout.flush()


def json_text(value: Any) -> str:
    """One JSON value; a number that JSON has no word for (NaN, infinity) becomes null."""
    text = json.dumps(_finite(value), ensure_ascii=False, indent=2)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # a terminal without UTF-8, or a file name that is no text
        return json.dumps(_finite(value), indent=2)
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and value - value != 0 else value


def _fail(message: str, code: int, as_json: bool) -> int:
    # a text of a file that is not the user's own could move the cursor or set the title
    message = "".join("�" if one in _CONTROLS else one for one in message)
    with contextlib.suppress(OSError):
        sys.stderr.write(message + "\n")
    if as_json:
        with contextlib.suppress(OSError):
            sys.stdout.write(json_text({"error": message.removeprefix("error: "), "exit_code": code}) + "\n")
            sys.stdout.flush()
    return code


def _kind(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def _traceback_place(error: Exception) -> str:
    """The run's log where the run has written it (its note says so), else a file of its own."""
    for note in getattr(error, "__notes__", []):
        if note.startswith("traceback in "):
            return str(note.removeprefix("traceback in "))
    try:
        with tempfile.NamedTemporaryFile("w", prefix="inlay-traceback-", suffix=".txt", delete=False) as file:
            file.write(traceback.format_exc())
    except OSError:
        return "stderr with INLAY_DEBUG=1"
    return file.name
