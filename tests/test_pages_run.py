"""The pages do what they say: every command of every block runs, in order, and prints lines of the shape that is shown.

`make` and `pip` are left to the fresh clone; a short training stands for the demo. The models that the pages name stand as folders of those names, so that
nothing is fetched; runs are short. serve.md needs a server beside: test_serve_page.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from parts import NANO
from program import environment
from test_docs import PAGES, ROOT

SHORT = [
    "train.max_steps=4", "train.eval_steps=2", "eval.max_rows=16", "eval.max_new_tokens=8", "eval.resamples=200",
    "eval.retention_rows=0", "model.device=cpu", "model.dtype=float32", "track.trackers=[]",
]  # fmt: skip
NOT_OURS = ("pip", "make", "python", ".venv/bin/python", ".venv/bin/inlay", "git", "py", "cd", "source")
DURATION = re.compile(r"# (h # min|min # s|min|h|ms)\b")
SIZE = re.compile(r"# [kMG]?B\b")
NUMBER = re.compile(r"\d[\d,.]*")
VERDICTS = re.compile(r"\b(better|worse|not distinguishable)\b")


def blocks(page: Path) -> list[tuple[str, list[str]]]:
    """(language, lines) of every fenced block, in order."""
    text = page.read_text(encoding="utf-8")
    return [(m[1], m[2].splitlines()) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)]


def commands(lines: list[str]) -> Iterator[list[str]]:
    """The words of each command of ours in a block of shell."""
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:2] == ["make", "demo"]:
            yield ["inlay", "train", "data.jsonl", "--model", "builtin:nano", "--name", "demo-1"]
        elif words and words[0] not in NOT_OURS:
            yield words


def shape(line: str) -> str:
    """A line without its numbers, the units of its durations and sizes, its spaces, its verdict, and what a quick machine leaves
    out: the time that is left."""
    bare = DURATION.sub("# s", " ".join(NUMBER.sub("#", VERDICTS.sub("VERDICT", line)).split()))
    return SIZE.sub("# MB", bare).removesuffix(" # s left")


FROM_NOTHING = ("README.md", "quickstart.md")
"""Pages that begin without a run and without a config; the others have `results/data-nano-1` and `support.yaml`."""
RUNNABLE = [
    page
    for page in PAGES
    if page.name not in ("CONTRIBUTING.md", "serve.md")
    and any(lang == "sh" and list(commands(lines)) for lang, lines in blocks(page))
]


def furnish(folder: Path) -> None:
    """The files and models that the pages name."""
    shutil.copytree(NANO, folder / "Qwen" / "Qwen2.5-0.5B-Instruct")
    task = NANO.parent / "domains" / "customer_support"
    rows = [json.loads(line) for line in (task / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    for name, part in (("data", rows[:80]), ("train", rows[:80]), ("heldout", rows[80:120]), ("my_rows", rows[:80])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    table = ["utterance,reply", *(f'"{question}","{answer}"' for question, answer in map(pair, rows[:40]))]
    (folder / "tickets.csv").write_text("\n".join(table) + "\n", encoding="utf-8")
    (folder / "handbook").mkdir()
    (folder / "handbook" / "parcels.txt").write_text("\n\n".join(pair(row)[1] for row in rows[:20]), encoding="utf-8")
    (folder / "train.yaml").write_text(
        "model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct\nstage: sft\nfinetuning_type: lora\nlora_rank: 8\ndataset: my_rows\n",
        encoding="utf-8",
    )
    (folder / "dataset_info.json").write_text(json.dumps({"my_rows": {"file_name": "my_rows.jsonl"}}), encoding="utf-8")


def pair(row: dict[str, list[dict[str, str]]]) -> tuple[str, str]:
    question, answer = (turn["content"].replace('"', "'") for turn in row["messages"][-2:])
    return question, answer


def short(words: list[str]) -> list[str]:
    """The command, for a training of four steps."""
    trains = words[words.index("inlay") + 1] in ("train", "sweep", "cross-validate", "compare-methods")
    return [*words, *(part for setting in SHORT for part in ("--set", setting))] if trains else words


def run(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    place = {"inlay": [sys.executable, "-m", "inlay"], "torchrun": [sys.executable, "-m", "torch.distributed.run"],
             "accelerate": [sys.executable, "-m", "accelerate.commands.accelerate_cli"]}  # fmt: skip
    words = short(words)
    return subprocess.run(
        [*place[words[0]], *words[1:]], cwd=folder, env=environment(), capture_output=True, text=True, timeout=900,
        stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_commands_of_a_page_run_in_order_and_print_what_it_shows(page: Path, tmp_path: Path) -> None:
    furnish(tmp_path)
    if page.name not in FROM_NOTHING:
        assert run(["inlay", "init", "support.yaml", "--preset", "support"], tmp_path).returncode == 0
        assert run(["inlay", "train", "data.jsonl", "--model", "builtin:nano"], tmp_path).returncode == 0
    printed: set[str] = set()
    for words in (words for language, lines in blocks(page) if language == "sh" for words in commands(lines)):
        done = run(words, tmp_path)
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stderr[-2000:]}"
        printed |= {shape(line) for line in (done.stdout + done.stderr).splitlines()}
    for language, lines in blocks(page):
        if not language and lines[0].startswith("results/"):
            (found,) = tmp_path.glob(lines[0].strip().rstrip("/"))
            assert [line for line in lines[1:] if not (found / line.split()[0]).exists()] == []
        elif not language:
            assert [line for line in lines if line.strip() not in ("", "…") and shape(line) not in printed] == []


def test_a_shape_forgets_numbers_and_verdict_and_nothing_else() -> None:
    assert shape("loss 8.319  lr 0.002 better") == shape("loss 7.1 lr 1 not distinguishable")
    assert shape("1 min 44 s left") == shape("19 s left")
    assert shape("memory 750 MB  33 s left") == shape("memory 1.1 GB")
    assert shape("loss 8.319") != shape("lost 8.319")
