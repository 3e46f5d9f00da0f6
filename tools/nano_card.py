"""Measure an exported `builtin:nano` and write its model card and licence beside the weights.

    python tools/nano_card.py --text TEXT --sft SFT CHAT --run RUN --model src/inlay/builtin/nano \\
        --baseline TINYSTORIES --hardware "two cores of ..."

RUN is the folder pretrain_nano.py trained in; BASELINE is another causal LM to compare with. Nothing is
edited: the text of the model is what greedy search and one fixed seed gave.
"""

import argparse
import hashlib
import json
import math
import shutil
import sysconfig
from pathlib import Path

import numpy as np
import torch
from nano_chat import END, PAD
from nano_corpus import SOURCES, documents, find, standard_library_files
from nano_model import CONTEXT
from ngram import KneserNey
from pretrain_nano import Mixture, latest
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

HELD_OUT_BYTES = 20_000  # measured per source
STRIDE = CONTEXT // 2
NEW_TOKENS = 80
TEXT_PROMPTS = [
    "Once upon a time, there was a little girl who",
    "The fox looked up at the grapes and",
    "“I am not afraid,” said the boy,",
    "The old man opened the door of the house and saw",
    "Photosynthesis is the process",
    "The cell membrane is",
    "In economics, supply and demand",
    "The Constitution of the United States",
    "def add(a, b):\n    ",
    "import os\n\ndef read_file(path):\n",
]
CHAT_PROMPTS = [
    "Hello!",
    "Who are you?",
    "What is the capital of France?",
    "What is 3 + 4?",
    "What is the opposite of big?",
    "Tell me a story about a wolf.",
    "What is mitosis?",
    "Tom has 5 apples. He buys 3 more and eats 2. How many apples does Tom have?",
    "Write a function to find the sum of a list of numbers.",
    "Write the shell command: List all files.",
]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def table(head: list[str], lines: list[list[object]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(c) for c in row) + " |" for row in rows)


@torch.no_grad()
def model_bits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> float:
    """Bits of a text. Each token sees at least CONTEXT - STRIDE before it where there are so many.

    The first token has no context unless the tokenizer adds one before it; it is then charged as one of V.
    """
    ids = tokenizer(text, add_special_tokens=False).input_ids
    bits = 0.0
    if tokenizer.bos_token_id is None:
        bits = math.log2(len(tokenizer))
    else:
        ids = [tokenizer.bos_token_id, *ids]
    done = 1
    for start in range(0, max(1, len(ids) - CONTEXT + STRIDE), STRIDE):
        window = torch.tensor(ids[start : start + CONTEXT])
        log_probs = model(window[None, :-1]).logits[0].float().log_softmax(-1)
        nll = -log_probs.gather(1, window[1:, None])[:, 0]
        bits += nll[done - start - 1 :].sum().item() / math.log(2)
        done = start + len(window)
    return bits


def seen_tokens(run: Path, state: dict) -> np.ndarray:
    """Every row the run drew, once."""
    mixture = Mixture(run, state["seed"], {})
    rows = []
    for name, taken in state["taken"].items():
        rows += [mixture.next(name) for _ in range(min(taken, len(mixture.rows[name])))]
    return np.concatenate(rows)


def held_out_table(args: argparse.Namespace, state: dict) -> tuple[str, str]:
    """Bits per byte per source and over all, for nano, the baseline and the 5-gram."""
    nano, tokenizer = load(args.model)
    other, other_tokenizer = load(args.baseline) if args.baseline else (None, None)
    seen = seen_tokens(args.run, state)
    grams = KneserNey(seen[seen != tokenizer.convert_tokens_to_ids(PAD)], len(tokenizer))
    lines, totals = [], np.zeros(4)
    for name in SOURCES:
        if name == "stories":  # its held-out requests quote passages that `children` trains on
            continue
        sums, left = np.zeros(4), HELD_OUT_BYTES
        for text in documents(name, [args.text, *args.sft], state["seed"])[1]:
            text = text[:left]
            left -= len(text)
            if not text:
                break
            ids = np.array(tokenizer(text, add_special_tokens=False).input_ids)
            sums += [
                len(text.encode()),
                model_bits(nano, tokenizer, text),
                model_bits(other, other_tokenizer, text) if other else math.nan,
                math.log2(len(tokenizer)) + grams.bits(ids).sum(),
            ]
        if sums[0]:
            totals += sums
            lines.append([name, f"{sums[0]:,.0f}", *(f"{b / sums[0]:.3f}" for b in sums[1:])])
            print(lines[-1], flush=True)
    lines.append(["**all**", f"{totals[0]:,.0f}", *(f"**{b / totals[0]:.3f}**" for b in totals[1:])])
    names = ["nano", args.baseline.name if args.baseline else "-", "Kneser-Ney 5-gram"]
    summary = ", ".join(f"{n} {b / totals[0]:.3f}" for n, b in zip(names, totals[1:], strict=True))
    return table(["held-out text", "bytes", *names], lines), summary


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def samples(folder: Path) -> str:
    """Twenty prompts, each continued by greedy search and by one sample, unedited."""
    model, tokenizer = load(folder)
    end = tokenizer.convert_tokens_to_ids(END)
    out = []
    for kind, prompt in [("text", p) for p in TEXT_PROMPTS] + [("chat", p) for p in CHAT_PROMPTS]:
        text = prompt
        if kind == "chat":
            turn = [{"role": "user", "content": prompt}]
            text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        inputs = tokenizer(text, return_tensors="pt", add_special_tokens=False)
        out.append(f"**{kind}:** {json.dumps(prompt, ensure_ascii=False)}\n")
        for how, options in (
            ("greedy", {}),
            ("sampled", {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 0}),
        ):
            torch.manual_seed(0)
            ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, **{"do_sample": False, **options})[0]
            new = ids[inputs.input_ids.shape[1] :]
            stopped = int(new[-1]) in (tokenizer.eos_token_id, end)
            body = tokenizer.decode(new, skip_special_tokens=True)
            ending = "stopped by itself" if stopped else f"cut at {NEW_TOKENS} tokens"
            out.append(f"{how} ({ending}):\n\n~~~~text\n{body}\n~~~~\n")
    return "\n".join(out)


def sources_table(args: argparse.Namespace, state: dict) -> str:
    lines, folders = [], [args.text, *args.sft]
    for name, source in SOURCES.items():
        counts = json.loads((args.run / "tokens" / f"{name}.json").read_text())["train"]
        rows = len(np.load(args.run / "tokens" / f"{name}.train.npy", mmap_mode="r"))
        files = [find(f, folders) for f in source.files]
        named = "<br>".join(f"{f.parent.name}/{f.name} `{sha256(f)[:16]}…`" for f in files)
        if name == "standard_library":
            library = Path(sysconfig.get_paths()["stdlib"])
            digest = hashlib.sha256(b"".join(f.read_bytes() for f in standard_library_files(library))).hexdigest()
            named = f"Python {sysconfig.get_python_version()} standard library without tests `{digest[:16]}…`"
        if name == "basics":
            script = Path(__file__).with_name("nano_basics.py")
            named = f"tools/{script.name} `{sha256(script)[:16]}…`"
        passes = state["taken"].get(name, 0) / rows
        lines.append([name, named, source.licence, source.credit, f"{counts['tokens']:,}", f"{passes:.2f}"])
    return table(["source", "file, sha256", "licence", "credit", "tokens", "passes"], lines)


def curve(run: Path) -> str:
    """Mean training loss of every 100 steps."""
    steps = {}
    for line in (run / "log.jsonl").read_text().splitlines():
        entry = json.loads(line)
        steps[entry["step"]] = entry  # a resumed run repeats the steps after its last checkpoint
    lines = []
    entries = list(steps.values())
    for i in range(0, len(entries), 100):
        part = entries[i : i + 100]
        mean = sum(e["loss"] for e in part) / len(part)
        last = part[-1]
        lines.append(
            [
                last["step"],
                f"{mean:.3f}",
                f"{last['factor']:.3f}",
                f"{last['tokens']:,}",
                f"{last['seconds'] / 60:.1f}",
            ]
        )
    return table(["to step", "mean loss, nats/token", "learning rate factor", "tokens", "minutes"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--sft", type=Path, nargs="*", default=[])
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--baseline", type=Path)
    parser.add_argument("--hardware", required=True)
    parser.add_argument("--licence-text", type=Path, default=Path("LICENSE"), help="the Apache-2.0 text to put beside")
    args = parser.parse_args()
    torch.set_num_threads(1)
    state = json.loads((latest(args.run) / "state.json").read_text())
    with safe_open(args.model / "model.safetensors", "pt") as weights:
        parameters = sum(math.prod(weights.get_slice(k).get_shape()) for k in weights.keys())  # noqa: SIM118
    comparison, summary = held_out_table(args, state)
    nats = sum(json.loads(x)["loss"] for x in (args.run / "log.jsonl").read_text().splitlines()[-50:]) / 50
    shutil.copyfile(args.licence_text, args.model / "LICENSE")
    files = [f for f in sorted(args.model.iterdir()) if f.is_file() and f.name != "README.md"]
    facts = {
        "tokens_seen": state["tokens"],
        "steps": state["step"],
        "minutes": round(state["seconds"] / 60, 1),
        "bits_per_byte": summary,
    }
    card = Path(__file__).with_name("nano_card.md").read_text(encoding="utf-8")
    filled = {
        "PARAMETERS": f"{parameters:,}",
        "SHAPE": ", ".join(f"{k} {v}" for k, v in state["shape"].items()),
        "TOKENS": f"{state['tokens']:,}",
        "STEPS": f"{state['step']:,}",
        "MINUTES": f"{state['seconds'] / 60:.0f}",
        "HARDWARE": args.hardware,
        "LOSS": f"{nats:.3f}",
        "SUMMARY": summary,
        "COMPARISON": comparison,
        "CURVE": curve(args.run),
        "SOURCES": sources_table(args, state),
        "FILES": table(
            ["file", "bytes", "sha256"], [[f"`{f.name}`", f.stat().st_size, f"`{sha256(f)}`"] for f in files]
        ),
        "SAMPLES": samples(args.model),
    }
    for key, value in filled.items():
        card = card.replace("{{" + key + "}}", value)
    (args.model / "README.md").write_text(card, encoding="utf-8")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
