"""The masks of chat templates that models ship with: `python benchmarks/chat_templates.py FOLDER [--page PAGE]`.

Each `*.jinja` under the folder is put on the built-in tokenizer with its own special tokens added, and meets the
conversations of test_masks.py. What must hold is what that test holds, without a table of what each template writes.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from tokenizers import AddedToken

import toys
from data.encoding.test_masks import CONVERSATIONS, answer, rendered
from data.habits import TOOL
from inlay.data.encoding.encoder import Encoder
from inlay.data.encoding.reasoning_prefix import parted
from inlay.data.types import Example, Message, Source
from inlay.errors import DataError

CONTROL = re.compile(
    r"<\|[^|<>\s{}']{1,40}\|>|<｜[^｜<>\s{}']{1,40}｜>|<[a-z_/]+_of_[a-z_]+>|\[/?[A-Z_]{2,}\]|</?s>"
    r"|<(?:bos|eos|sep)>|<\|[a-z]+>|<[a-z]+\|>|<seed:[be]os>"
)
ENDS = (
    "<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<|end|>", "<|return|>", "<turn|>",
    "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|end_of_text|>", "<|assistant_end|>", "<|message_sep|>", "<seed:eos>",
)  # fmt: skip
MARK = "<!-- written by benchmarks/chat_templates.py -->"


class Broken(Exception):
    """Something that must hold does not."""


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Broken(what)


def encoder(path: Path) -> Encoder:
    template = path.read_text(encoding="utf-8")
    tokenizer = toys.nano(template)
    found = dict.fromkeys([*CONTROL.findall(template), "<s>", "</s>"])
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in found])
    tokenizer.eos_token = next((end for end in ENDS if end in found), "</s>")
    tokenizer.bos_token = "<s>"
    return Encoder(tokenizer)


def outcome(enc: Encoder, messages: tuple[Message, ...], tools: list[dict[str, Any]]) -> str:
    """How a conversation came out. Raises: Broken."""
    try:
        rows = [tokens for _, tokens in enc.examples([Example(messages, Source("row", 1), tuple(tools))])]
        prompts = {n: enc.prompt(messages[:n], tools) for n, m in enumerate(messages) if m.weight > 0}
    except DataError as error:
        return f"refused: {error}"
    trained = 0
    for n, prompt in prompts.items():
        require(enc.tokenizer.decode(prompt) == rendered(enc, messages[:n], tools), f"prompt of turn {n + 1}")
        k = len(prompt)
        rows_of = [r for r in rows if r.input_ids[:k].tolist() == prompt and (r.weights[k : k + 1] > 0).any()]
        require(len(rows_of) == 1 and rows_of[0].weights[k - 1] == 0, f"turn {n + 1} is trained {len(rows_of)} times")
        (row,) = rows_of
        text = answer(enc, row, k)
        thought, said = parted(messages[n].content)
        require(thought in text and said.strip() in text, f"turn {n + 1} trains {text!r}")
        count = 0
        while k + count < len(row.weights) and row.weights[k + count] > 0:
            count += 1
        require(int(row.input_ids[k + count - 1]) in enc.stop_ids, f"turn {n + 1} has no end: {text[-40:]!r}")
        trained += count
    require(sum(int((r.weights > 0).sum()) for r in rows) == trained, "something else is trained too")
    altered = any(row.altered for row in rows)
    return f"{'altered' if altered else 'exact'}, {'one row' if len(rows) == 1 else 'a row for each turn'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--page", type=Path, help="page in which the table below its mark is written anew")
    options = parser.parse_args()
    paths = sorted(options.folder.rglob("*.jinja"))
    all_of: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    lines, broken, untouched = [], 0, 0
    for path in paths:
        enc, counts = encoder(path), Counter[str]()
        refusals: dict[str, str] = {}
        for name, (messages, feature) in CONVERSATIONS.items():
            try:
                came_out = outcome(enc, messages, [TOOL] if feature == "tools" else [])
            except Broken as error:
                came_out = f"BROKEN: {error}"
                print(f"{path.name}, {name}: {error}", file=sys.stderr)
            kind, _, reason = came_out.partition(": ")
            counts[kind] += 1
            if reason:
                short = re.sub(r"turn \d+", "turn n", reason.removeprefix("row:1: ")).partition(", so")[0][:90]
                refusals.setdefault(short, name)
                reasons[short] += 1
        all_of += counts
        broken += counts["BROKEN"]
        untouched += counts["refused"] == 0
        told = "; ".join(f"{name}: {reason}" for reason, name in refusals.items()).replace("|", "\\|")
        kinds = ("exact, one row", "exact, a row for each turn", "altered, one row", "altered, a row for each turn")
        figures = " | ".join(str(counts[kind]) for kind in (*kinds, "refused", "BROKEN"))
        lines.append(f"| {path.stem} | {figures} | {told} |")
    head = (
        f"{len(paths)} templates × {len(CONVERSATIONS)} conversations = {len(paths) * len(CONVERSATIONS):,}: "
        + ", ".join(f"{count:,} {kind}" for kind, count in sorted(all_of.items()))
        + f". {untouched} templates refuse nothing; BROKEN in all: {broken}."
    )
    table = "\n".join([
        "| template | exact, one row | exact, row a turn | altered, one row | altered, row a turn | refused | broken | first refusal of each kind |",
        "|---|---|---|---|---|---|---|---|", *lines,
    ])  # fmt: skip
    print(head)
    for reason, count in reasons.most_common(12):
        print(f"{count:>5}  {reason}")
    if options.page:
        before = options.page.read_text(encoding="utf-8").partition(MARK)[0]
        options.page.write_text(f"{before}{MARK}\n\n{head}\n\n{table}\n", encoding="utf-8")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
