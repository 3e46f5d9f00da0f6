"""The page on serving does what it says: its server runs, and every block of every language is answered."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from inlay.serving.started_server import free_port
from program import environment
from test_docs import ROOT, blocks
from test_pages_run import furnish, run

PAGE = ROOT / "docs" / "serve.md"
TOKEN = re.compile(r"inlay-[\w-]{20,}")
RUNNERS = {"python": [sys.executable], "js": ["node", "--input-type=module", "-"], "sh": ["bash", "-e"]}


class Reader:
    """Someone who follows the page in an empty folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.environment = environment()
        self.server: subprocess.Popen[str] | None = None

    def furnish(self) -> None:
        """A trained run, and the token of an admin."""
        furnish(self.folder)
        assert run(["inlay", "train", "data.jsonl", "--model", "builtin:nano"], self.folder).returncode == 0
        made = run(["inlay", "serve", "token", "root"], self.folder)
        (self.folder / "admin.txt").write_text(made.stdout.replace("answer,feedback", "admin"), encoding="utf-8")
        self.environment["ADMIN"] = TOKEN.findall(made.stderr)[0]

    def serve(self, line: str) -> str:
        """Starts the server of the page, and gives its first line."""
        words = [sys.executable, "-m", *line.replace("8000", str(self.port)).split(), "--admin-tokens", "admin.txt"]
        self.server = subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def follow(self, language: str, body: str) -> str:
        """Runs one block, and gives what it printed."""
        lines = [line for line in body.splitlines() if not line.startswith(("pip ", "inlay serve token"))]
        text = "\n".join(lines).replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        if language == "sh":
            text = text.replace("inlay ", f"{sys.executable} -m inlay ", 1) if text.startswith("inlay ") else text
            text = text.replace("\ninlay ", f"\n{sys.executable} -m inlay ").replace(
                "curl -s", "curl -s --fail-with-body"
            )
            text = text.replace("--workload adapters-8", "--workload adapters-8 --seconds 2")
        done = subprocess.run(
            RUNNERS[language], input=text, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout[-1500:]}{done.stderr[-1500:]}"
        return done.stdout + done.stderr

    def end(self) -> str:
        """Ends the server as Ctrl+C does; its last words."""
        assert self.server is not None
        self.server.send_signal(signal.SIGINT)
        out, _ = self.server.communicate(timeout=40)
        assert self.server.returncode == 0
        return out


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    one = Reader(tmp_path)
    yield one
    if one.server is not None and one.server.poll() is None:
        os.killpg(one.server.pid, signal.SIGKILL)


@pytest.mark.slow
def test_every_block_of_the_page_on_serving_is_answered(reader: Reader) -> None:
    reader.furnish()
    found = blocks(PAGE.read_text(encoding="utf-8"))
    printed: dict[str, str] = {}
    (ready,) = (body.strip() for language, body in found if not language)
    for number, (language, body) in enumerate(found):
        if body.startswith("inlay serve builtin:nano"):
            assert reader.serve(body.strip()).strip() == ready.replace("8000", str(reader.port))
        elif language in RUNNERS and not body.startswith("inlay serve token"):
            if shutil.which(RUNNERS[language][0]):
                printed[f"{number} {body[:40]}"] = reader.follow(language, body)
        else:
            assert language in ("", "text", "sh")
    assert len(printed) >= 8
    assert all(printed.values())
    everything = "\n".join(printed.values())
    assert '"id":"support:prod"' in everything
    assert '"finish_reason":' in everything
    assert "tokens/s" in everything
    assert '"ref":"support:1"' in everything
    assert "Ended by SIGINT after" in reader.end()
