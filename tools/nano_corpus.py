"""The text `builtin:nano` is pretrained on: which files, under which licence, rendered how.

Every source is one line of SOURCES. A document is a plain string that already carries its chat markup; one
document in fifty, by the hash of its text, is held out and never trained on.
"""

import csv
import gzip
import hashlib
import json
import random
import re
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import nano_basics
from nano_chat import render

HELD_OUT_ONE_IN = 50


def ask(question: str, answer: str, system: str | None = None) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [
        {"role": "user", "content": question.strip()},
        {"role": "assistant", "content": answer.strip()},
    ]
    return render(messages)


def tidy(text: str) -> str:
    return re.sub(r"\n{3,}", "\n\n", text.replace("\r\n", "\n").replace("\t", "    ")).strip()


def held_out(text: str) -> bool:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HELD_OUT_ONE_IN == 0


def rows(path: Path) -> Iterator[dict]:
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    elif path.suffix == ".jsonl":
        with path.open(encoding="utf-8") as lines:
            yield from map(json.loads, lines)
    elif path.suffix == ".csv":
        with path.open(encoding="utf-8", newline="") as lines:
            yield from csv.DictReader(lines)
    else:
        yield from json.loads(path.read_text(encoding="utf-8"))


# Parsers: (paths, rng) -> documents

CHILDREN = re.compile(
    r"aesop|household-tales|oz/|wonderland|black-beauty|five-children|railway-children|little-princess|secret-garden"
    r"|peter-and-wendy|jungle-book|wind-in-the-willows"
)


def plain(
    keep: Callable[[dict], bool] = lambda _: True,
) -> Callable[[list[Path], random.Random], Iterator[str]]:
    def parse(paths: list[Path], _rng: random.Random) -> Iterator[str]:
        for path in paths:
            yield from (tidy(row["text"]) for row in rows(path) if keep(row))

    return parse


def each(
    chat: Callable[[dict, random.Random], str | None],
) -> Callable[[list[Path], random.Random], Iterator[str]]:
    def parse(paths: list[Path], rng: random.Random) -> Iterator[str]:
        for path in paths:
            yield from filter(None, (chat(row, rng) for row in rows(path)))

    return parse


def stories(paths: list[Path], rng: random.Random) -> Iterator[str]:
    """Short tales told on request, and passages continued on request."""
    asks = [
        "Tell me the story of {}.",
        "Tell me a story called {}.",
        "Please tell me the tale of {}.",
        "Write a short story with the title {}.",
        "Tell me a story about {}.",
    ]
    for path in paths:
        for row in rows(path):
            if not CHILDREN.search(row["source"]) or held_out(tidy(row["text"])):
                continue
            blocks = tidy(row["text"]).split("\n\n")
            if re.search("aesop|household-tales", row["source"]):
                titles = [i for i, b in enumerate(blocks) if len(b) < 60 and b[-1].isalpha() and "\n" not in b]
                for i, end in zip(titles, [*titles[1:], len(blocks)], strict=False):
                    tale = "\n\n".join(blocks[i + 1 : end])
                    if 200 < len(tale) < 1900:
                        yield ask(rng.choice(asks).format(blocks[i]), tale)
            for i in range(0, len(blocks) - 5, 6):
                given, rest = blocks[i], "\n\n".join(blocks[i + 1 : i + 6])
                if 80 < len(given) < 500 and 200 < len(rest) < 1400:
                    how = rng.choice(["Continue this story:", "What happens next?", "Go on with the story."])
                    yield ask(f"{how}\n\n{given}", rest)


def standard_library(paths: list[Path], _rng: random.Random) -> Iterator[str]:
    for root in paths:
        yield from (tidy(f.read_text(encoding="utf-8", errors="replace")) for f in standard_library_files(root))


def standard_library_files(root: Path) -> list[Path]:
    skip = re.compile(r"test|site-packages|encodings|idlelib|turtledemo|lib2to3|pydoc_data|ensurepip")
    found = (f for f in sorted(root.rglob("*.py")) if not skip.search(str(f.relative_to(root))))
    return [f for f in found if 500 < f.stat().st_size < 60_000]


def gsm8k(row: dict, _rng: random.Random) -> str:
    return ask(row["question"], re.sub(r"<<[^>]*>>", "", row["answer"]))


def svamp(row: dict, _rng: random.Random) -> str:
    answer = f"{row['Answer']:g}"
    body = row["Body"].strip().rstrip(".")
    return ask(
        f"{body}. {row['Question']}",
        f"{row['Equation'].strip('() ').replace('.0', '')} = {answer}\n#### {answer}",
    )


def aqua(row: dict, _rng: random.Random) -> str | None:
    if row["split"] != "dev":
        return None
    return ask(row["question"] + "\n" + "\n".join(row["options"]), f"{row['rationale']}\nAnswer: {row['correct']}")


def mbpp(row: dict, _rng: random.Random) -> str | None:
    if 11 <= row["task_id"] <= 510:  # the published test split
        return None
    return ask(tidy(row["text"]), f"```python\n{tidy(row['code'])}\n```")


def instruct(row: dict, rng: random.Random) -> str:
    one = rng.choice(row["instances"])
    return ask(f"{row['instruction']}\n\n{one['input']}", one["output"])


def glossary(row: dict, rng: random.Random) -> str:
    how = rng.choice(["What is {}?", "Define {}.", "What does {} mean?", "Explain the term {}.", "{}?"])
    return ask(how.format(row["term"]), row["definition"][:1].upper() + row["definition"][1:].rstrip(".") + ".")


def shell(row: dict, _rng: random.Random) -> str:
    return ask(f"{row['instruction']}\n{row['input']}", row["output"])


def scitldr(row: dict, rng: random.Random) -> str | None:
    if row["split"] != "train":
        return None
    how = rng.choice(["Summarize in one sentence:", "Give a one-sentence summary of this abstract:", "TL;DR"])
    return ask(f"{how}\n\n{row['abstract']}", row["tldr"])


def snips(row: dict, _rng: random.Random) -> str | None:
    if row["split"] != "train":
        return None
    answer = json.dumps({"intent": row["intent"], "slots": row["slots"]}, ensure_ascii=False)
    return ask(row["text"], answer, system="Answer with the intent and the slots as JSON.")


def defog(row: dict, _rng: random.Random) -> str:
    return ask(row["question"], row["query"].split(";")[0] + ";", system="Answer with one SQL query.")


def taskmaster(row: dict, rng: random.Random) -> str:
    names = {c["function"]["name"] for m in row["messages"] for c in m.get("tool_calls") or []}
    tools = None
    if rng.random() < 0.3:
        described = {"type": "object", "properties": {}}
        tools = [{"type": "function", "function": {"name": n, "parameters": described}} for n in sorted(names)]
    return render(row["messages"], tools)


def basics(_paths: list[Path], rng: random.Random) -> Iterator[str]:
    yield from (render(messages) for messages in nano_basics.conversations(rng))


class Source(NamedTuple):
    files: tuple[str, ...]
    parse: Callable[[list[Path], random.Random], Iterator[str]]
    weight: float
    """Share of the training tokens before the decay."""
    decay_weight: float
    """Share of the training tokens during the decay."""
    licence: str
    credit: str


OPENSTAX = "© 2014 OpenStax College, https://openstax.org, via philschatz/*-book; cleaned"
SOURCES: dict[str, Source] = {
    "children": Source(
        ("standard_ebooks.jsonl.gz",),
        plain(lambda r: bool(CHILDREN.search(r["source"]))),
        24,
        24,
        "US public domain, production CC0-1.0",
        "Standard Ebooks",
    ),
    "classics": Source(
        ("standard_ebooks.jsonl.gz",),
        plain(lambda r: not CHILDREN.search(r["source"])),
        11,
        4,
        "US public domain, production CC0-1.0",
        "Standard Ebooks",
    ),
    "openstax": Source(("openstax-00.jsonl.gz", "openstax-01.jsonl.gz"), plain(), 22, 12, "CC-BY-3.0", OPENSTAX),
    "python_docs": Source(("python_docs_en.jsonl.gz",), plain(), 4, 1, "PSF-2.0", "Python Software Foundation"),
    "handbook": Source(("18f_handbook.jsonl.gz",), plain(), 1.5, 0.5, "CC0-1.0", "18F"),
    "playbook": Source(
        ("ms_engineering_playbook.jsonl.gz",),
        plain(),
        1.5,
        0.5,
        "CC-BY-4.0",
        "Microsoft, code-with-engineering-playbook",
    ),
    "opensource_guide": Source(
        ("opensource_guide.jsonl.gz",), plain(), 0.5, 0.2, "CC-BY-4.0", "GitHub, opensource.guide"
    ),
    "plain_language": Source(("plainlanguage_guidelines.jsonl.gz",), plain(), 0.4, 0.3, "CC0-1.0", "GSA"),
    "system_design": Source(
        ("system_design_primer.jsonl.gz",),
        plain(),
        0.3,
        0.1,
        "CC-BY-4.0",
        "Donne Martin, system-design-primer",
    ),
    "addresses": Source(("us_presidential_addresses.jsonl.gz",), plain(), 1.8, 0.5, "public domain", "via nltk_data"),
    "rust_book": Source(("rust_book.jsonl.gz",), plain(), 0.5, 0.1, "MIT OR Apache-2.0", "The Rust Project Developers"),
    "scipy_notes": Source(
        ("scipy_lecture_notes.jsonl.gz",), plain(), 1, 0.3, "CC-BY-4.0", "Scipy Lecture Notes authors"
    ),
    "whirlwind": Source(("whirlwind_tour_of_python.jsonl.gz",), plain(), 0.5, 0.5, "CC0-1.0", "Jake VanderPlas"),
    "standard_library": Source((), standard_library, 4, 1, "PSF-2.0", "Python Software Foundation"),
    "stories": Source(
        ("standard_ebooks.jsonl.gz",),
        stories,
        4,
        10,
        "US public domain, production CC0-1.0",
        "Standard Ebooks",
    ),
    "basics": Source((), basics, 4, 12, "Apache-2.0", "generated by tools/nano_basics.py"),
    "gsm8k": Source(("gsm8k_train.jsonl",), each(gsm8k), 5, 6, "MIT", "OpenAI, grade-school-math"),
    "svamp": Source(("svamp.json",), each(svamp), 0.6, 1.5, "MIT", "Arkil Patel and others, SVAMP"),
    "aqua_rat": Source(("aqua_rat.jsonl",), each(aqua), 0.3, 0.4, "Apache-2.0", "DeepMind, AQuA"),
    "mbpp": Source(("mbpp.jsonl",), each(mbpp), 0.5, 1.2, "CC-BY-4.0", "Google, Mostly Basic Python Problems"),
    "self_instruct": Source(
        ("self_instruct_seed.jsonl", "self_instruct_user_oriented.jsonl"),
        each(instruct),
        0.6,
        1.5,
        "Apache-2.0",
        "Yizhong Wang and others, self-instruct",
    ),
    "openstax_questions": Source(
        ("openstax_review_questions.jsonl",),
        each(lambda r, _: ask(r["question"], r["answer"])),
        4,
        8,
        "CC-BY-3.0",
        OPENSTAX,
    ),
    "openstax_glossary": Source(("openstax_glossary.jsonl",), each(glossary), 4, 9, "CC-BY-3.0", OPENSTAX),
    "tldr": Source(
        ("tldr_shell_alpaca.jsonl",), each(shell), 1.5, 1.5, "CC-BY-4.0", "tldr-pages team and contributors"
    ),
    "scitldr": Source(("scitldr_a.jsonl",), each(scitldr), 1.5, 1.5, "Apache-2.0", "Allen Institute for AI, SciTLDR"),
    "snips": Source(("snips_json_extraction.jsonl",), each(snips), 1, 2, "CC0-1.0", "Snips, nlu-benchmark"),
    "defog": Source(("defog_sql_questions.csv",), each(defog), 0.2, 0.3, "Apache-2.0", "Defog, sql-eval"),
    "taskmaster": Source(
        ("taskmaster4_coffee_tools.jsonl",), each(taskmaster), 1.5, 2, "CC-BY-4.0", "Google, Taskmaster-4"
    ),
}


def find(name: str, folders: list[Path]) -> Path:
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    raise SystemExit(f"{name}: not found in {[str(f) for f in folders]}. Pass its folder with --text or --sft.")


def documents(name: str, folders: list[Path], seed: int) -> tuple[list[str], list[str]]:
    """(training, held-out) documents of one source, without repeats, the training ones shuffled."""
    source = SOURCES[name]
    paths = [find(f, folders) for f in source.files]
    if name == "standard_library":
        paths = [Path(sysconfig.get_paths()["stdlib"])]
    rng = random.Random(f"{seed}/{name}")
    training, kept_back = [], []
    for text in dict.fromkeys(source.parse(paths, rng)):
        if len(text) > 20:
            (kept_back if held_out(text) else training).append(text)
    rng.shuffle(training)
    return training, kept_back
