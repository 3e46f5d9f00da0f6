"""A page on this machine that shows two answers without their names and asks which is better."""

from __future__ import annotations

import random
import secrets
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import get_args
from urllib.parse import parse_qs, urlsplit

from inlay.evaluation.blind import Choice, Trial, read_judgements, trials, write_judgement
from inlay.evaluation.comparison import Comparison
from inlay.reports import html
from inlay.reports.html import Html, page, section, tag

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
