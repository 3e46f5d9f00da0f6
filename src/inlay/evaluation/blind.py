"""A blind comparison: a person prefers one of two answers without knowing whose they are.

Trials, judgements on disk, the difference that follows from them, and the page on this machine that asks.
"""

from __future__ import annotations

import hashlib
import json
import random
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Literal, get_args
from urllib.parse import parse_qs, urlsplit

import numpy as np

from inlay.errors import StorageError
from inlay.evaluation.compare import ComparedRow, Comparison
from inlay.evaluation.metrics import Metric, ratio
from inlay.evaluation.verdict import Difference, paired_bootstrap
from inlay.reports import html
from inlay.reports.html import Html, page, section, tag
from inlay.storage import read_lines, write_file
from inlay.typed_json import Mistyped, decode, encode

FILE = "preferences.jsonl"
Choice = Literal["left", "right", "alike"]
_PREFERENCE = Metric(
    name="preference", higher_is_better=True, description="share of the judged rows whose answer was preferred",
    size=2, value=ratio,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Judgement:
    """The preference for one row, as a line of `preferences.jsonl`."""

    key: str
    """Digest of the row's texts."""
    preferred: str
    """base, adapter or alike."""
    at: str = ""
    """Time in UTC, ISO 8601."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One row with two answers, as the judge sees it."""

    key: str
    question: str
    reference: str
    left: str
    right: str
    left_is: Literal["base", "adapter"]

    def preferred(self, choice: Choice) -> str:
        """base, adapter or alike."""
        if choice == "alike":
            return choice
        return self.left_is if choice == "left" else {"base": "adapter", "adapter": "base"}[self.left_is]


def trials(comparison: Comparison, judged: Sequence[str], chance: random.Random) -> list[Trial]:
    """The rows that are not judged yet, in random order, each with its answers on random sides.

    Rows with two equal answers are left out.
    """
    found: dict[str, Trial] = {}
    for row in comparison.rows:
        key = _key(row)
        if key in judged or not _differs(row):
            continue
        base, adapter = row.base_answer or "", row.adapter_answer or ""
        if chance.random() < 0.5:
            found[key] = Trial(key, row.question, row.reference, base, adapter, "base")
        else:
            found[key] = Trial(key, row.question, row.reference, adapter, base, "adapter")
    order = list(found.values())
    chance.shuffle(order)
    return order


def _differs(row: ComparedRow) -> bool:
    return row.adapter_answer is not None and row.base_answer != row.adapter_answer


def _key(row: ComparedRow) -> str:
    texts = json.dumps([row.question, row.reference, row.base_answer, row.adapter_answer])
    return hashlib.sha256(texts.encode()).hexdigest()[:16]


def read_judgements(folder: Path) -> dict[str, Judgement]:
    """The judgements so far, by the key of the row; the last one of a row counts. Raises: StorageError for other lines."""
    try:
        return {one.key: one for one in (decode(Judgement, line) for line in read_lines(folder / FILE))}
    except Mistyped as error:
        raise StorageError(
            f"{folder / FILE}: not judgements ({error}). Delete the line, or move the file away."
        ) from None


def write_judgement(folder: Path, trial: Trial, choice: Choice) -> None:
    """Adds one judgement; it is on the disk when this returns."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    every = read_judgements(folder) | {trial.key: Judgement(trial.key, trial.preferred(choice), now)}
    write_file(folder / FILE, "".join(json.dumps(encode(one)) + "\n" for one in every.values()))


def preference(comparison: Comparison, folder: Path, *, resamples: int, seed: int) -> Difference | None:
    """Share of the judged rows with the adapter's answer preferred, minus that of the base's; None without judgements.

    Only judgements of these very answers count.
    """
    judged = read_judgements(folder)
    here = [judged[key].preferred for key in dict.fromkeys(map(_key, comparison.rows)) if key in judged]
    if not here:
        return None
    base, adapter = (np.array([[float(preferred == side), 1.0] for preferred in here]) for side in ("base", "adapter"))
    return paired_bootstrap(base, adapter, _PREFERENCE, resamples=resamples, seed=seed)


_LONGEST_FORM = 1000


class Session:
    """The trials of one session and the number judged. Safe for several threads."""

    def __init__(self, comparison: Comparison, folder: Path, chance: random.Random) -> None:
        self._folder, self._lock = folder, Lock()
        self.trials = trials(comparison, list(read_judgements(folder)), chance)
        self._judged: dict[str, Choice] = {}

    def judge(self, key: str, choice: Choice) -> None:
        """Writes the choice; one for a row that is not of this session is ignored."""
        with self._lock:
            for trial in self.trials:
                if trial.key == key:
                    write_judgement(self._folder, trial, choice)
                    self._judged[key] = choice

    def next(self) -> tuple[int, Trial | None]:
        """(how many were judged, the next one or None)."""
        with self._lock:
            return len(self._judged), next((t for t in self.trials if t.key not in self._judged), None)


def serve_trials(comparison: Comparison, folder: Path, note: Callable[[str], None]) -> None:
    """Serves the page until everything is judged, the judge is done, or Ctrl+C. `note` gets its address.

    Only this machine reaches it, and only with the secret in its address.
    """
    session = Session(comparison, folder, random.SystemRandom())
    if not session.trials:
        note("nothing to judge: every row was judged before, or both answers are equal.")
        return
    with ThreadingHTTPServer(("127.0.0.1", 0), _handler(session, secrets.token_urlsafe(12))) as server:
        server.daemon_threads = True
        secret = server.RequestHandlerClass.secret  # type: ignore[attr-defined]
        note(f"{len(session.trials)} pairs of answers to judge: open http://127.0.0.1:{server.server_port}/{secret}/")
        note("Each judgement is saved at once. Finish on the page or with Ctrl+C.")
        try:
            server.serve_forever(poll_interval=0.1)
        except KeyboardInterrupt:
            note(f"{session.next()[0]} judged.")


def _handler(session: Session, its_secret: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        secret = its_secret

        def do_GET(self) -> None:
            if self._is_ours():
                judged, trial = session.next()
                self._answer(_trial_page(trial, judged, len(session.trials)) if trial else _end_page(judged))
                if trial is None:
                    self._stop()

        def do_POST(self) -> None:
            if not self._is_ours():
                return
            size = min(int(self.headers.get("Content-Length") or 0), _LONGEST_FORM)
            form = {
                name: values[0] for name, values in parse_qs(self.rfile.read(size).decode("utf-8", "replace")).items()
            }
            if form.get("choice") == "finish":
                self._answer(_end_page(session.next()[0]))
                self._stop()
            elif form.get("choice") in get_args(Choice):
                session.judge(form.get("key", ""), form["choice"])  # type: ignore[arg-type]
                self.send_response(303)
                self.send_header("Location", f"/{self.secret}/")
                self.end_headers()
            else:
                self.send_error(400)

        def _is_ours(self) -> bool:
            # a page from elsewhere may reach this port under a name of its own
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            right = self.path == f"/{self.secret}/" and host in ("127.0.0.1", "localhost")
            if not right:
                self.send_error(404)
            return right

        def _answer(self, text: str) -> None:
            body = text.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def _stop(self) -> None:
            Thread(target=self.server.shutdown, daemon=True).start()

        def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
            pass

    return Handler


def _trial_page(trial: Trial, judged: int, of: int) -> str:
    def button(text: str, choice: str, key: str) -> Html:
        hint = tag("kbd", {"ArrowLeft": "←", "ArrowRight": "→", "ArrowDown": "↓"}[key])
        return tag("button", text, " ", hint, name="choice", value=choice, data_key=key)

    def shown(text: str) -> Html:
        return tag("p", text if text.strip() else tag("span", "(empty)", class_="note"), class_="text")

    buttons = [
        button("A is better", "left", "ArrowLeft"), button("alike", "alike", "ArrowDown"),
        button("B is better", "right", "ArrowRight"),
    ]  # fmt: skip
    hidden = tag("input", name="key", value=trial.key, type="hidden")
    return page(
        "Which answer is better?",
        html.note(f"{judged} of {of} judged. A and B change sides at random."),
        section("Prompt", shown(trial.question)),
        tag("div", section("A", shown(trial.left)), section("B", shown(trial.right)), class_="columns"),
        tag("form", hidden, buttons, method="post", class_="bar"),
        tag("details", tag("summary", "reference answer"), shown(trial.reference)),
        tag("form", tag("button", "finish for now", name="choice", value="finish"), method="post", class_="bar"),
    )


def _end_page(judged: int) -> str:
    return page("Thank you", html.note(f"{judged} judged. The report holds them now; this page can be closed."))
