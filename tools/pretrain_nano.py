"""Pretrain `builtin:nano`, a small Llama, on a CPU: tokenizer, token cache, training, export.

    python tools/pretrain_nano.py --text TEXT --sft SFT CHAT --run RUN --minutes 100 --decay-minutes 25
    python tools/pretrain_nano.py --text TEXT --sft SFT CHAT --run RUN --export src/inlay/builtin/nano

Kill it at any time and start it again with the same command: it goes on from the last checkpoint. Everything
drawn at random follows from --seed and the step. With --minutes the learning rate falls by the clock over the
last --decay-minutes of this invocation, so the number of steps depends on the machine; RUN/log.jsonl keeps
the factor of every step. With --steps and --decay-steps the schedule depends on the step alone.

Shapes: B rows, T tokens.
"""

import argparse
import json
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from nano_chat import END, PAD, STOP, save_tokenizer, train_tokenizer
from nano_corpus import SOURCES, documents
from nano_model import CONTEXT, NORM_EPS, ROPE_THETA, Nano, Optimizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

WARMUP_STEPS = 40
MICRO_ROWS = 2


# Tokens


def pieces(ids: list[int], newline: set[int]) -> list[list[int]]:
    """A document cut to at most CONTEXT tokens, where there is one after a line break."""
    out, start = [], 0
    while len(ids) - start > CONTEXT:
        end = start + CONTEXT
        cut = next((i for i in range(end, end - 150, -1) if ids[i - 1] in newline), end)
        out.append(ids[start:cut])
        start = cut
    return [*out, ids[start:]]


def pack(documents: list[list[int]], newline: set[int], pad: int) -> np.ndarray:
    """Rows of CONTEXT tokens. Each begins at a document or a piece of one; best fit, the rest is padding."""
    todo = sorted((p for d in documents for p in pieces(d, newline)), key=len, reverse=True)
    room: dict[int, list[list[int]]] = {}
    rows = []
    for piece in todo:
        space = next((s for s in range(len(piece), CONTEXT + 1) if room.get(s)), None)
        row = room[space].pop() if space else []
        if not space:
            rows.append(row)
        row.extend(piece)
        room.setdefault(CONTEXT - len(row), []).append(row)
    packed = np.full((len(rows), CONTEXT), pad, dtype=np.uint16)
    for i, row in enumerate(rows):
        packed[i, : len(row)] = row
    return packed


def prepare(args: argparse.Namespace, folders: list[Path]) -> Tokenizer:
    """The tokenizer and one token file per source under RUN/tokens; what exists is kept."""
    tokens = args.run / "tokens"
    tokens.mkdir(parents=True, exist_ok=True)
    if not (args.run / "tokenizer" / "chat_template.jinja").exists():
        sample = []
        for name, source in SOURCES.items():
            texts = documents(name, folders, args.seed)[0]
            budget = int(400_000 * source.weight)
            for text in texts:
                if budget > 0:
                    sample.append(text[:budget])
                    budget -= len(text)
        save_tokenizer(train_tokenizer(iter(sample), args.vocab_size), args.run / "tokenizer", CONTEXT)
    tokenizer = Tokenizer.from_file(str(args.run / "tokenizer" / "tokenizer.json"))
    end, pad = tokenizer.token_to_id(END), tokenizer.token_to_id(PAD)
    newline = {i for i in range(tokenizer.get_vocab_size()) if "\n" in tokenizer.decode([i])}
    for name in SOURCES:
        if (tokens / f"{name}.json").exists():
            continue
        counts = {}
        for part, texts in zip(("train", "held_out"), documents(name, folders, args.seed), strict=True):
            ids = [[*e.ids, end] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            np.save(
                tokens / f"{name}.{part}.npy",
                pack(ids, newline, pad) if ids else np.zeros((0, CONTEXT), np.uint16),
            )
            counts[part] = {
                "documents": len(texts),
                "tokens": sum(map(len, ids)),
                "bytes": sum(len(t.encode()) for t in texts),
            }
        (tokens / f"{name}.json").write_text(json.dumps(counts))
        print(name, counts, flush=True)
    return tokenizer


class Mixture:
    """Rows of the training files in the shares of SOURCES; its state is `taken`, rows drawn per source."""

    def __init__(self, run: Path, seed: int, taken: dict[str, int]) -> None:
        self.seed, self.taken = seed, taken
        self.rows = {n: np.load(run / "tokens" / f"{n}.train.npy", mmap_mode="r") for n in SOURCES}
        self.order: dict[str, tuple[int, np.ndarray]] = {}

    def batch(self, step: int, rows: int, decay: bool) -> Tensor:
        names = list(SOURCES)
        weights = np.array([SOURCES[n].decay_weight if decay else SOURCES[n].weight for n in names])
        drawn = np.random.default_rng([self.seed, step]).choice(len(names), rows, p=weights / weights.sum())
        return torch.from_numpy(np.stack([self.next(names[i]) for i in drawn]).astype(np.int64))

    def next(self, name: str) -> np.ndarray:
        taken = self.taken.get(name, 0)
        self.taken[name] = taken + 1
        epoch, row = divmod(taken, len(self.rows[name]))
        if self.order.get(name, (None,))[0] != epoch:
            shuffled = list(range(len(self.rows[name])))
            random.Random(f"{self.seed}/{name}/{epoch}").shuffle(shuffled)
            self.order[name] = (epoch, np.array(shuffled))
        return self.rows[name][self.order[name][1][row]]


# Checkpoints


def latest(run: Path) -> Path | None:
    found = sorted(run.glob("checkpoint-[0-9]*"), key=lambda p: int(p.name.split("-")[1]))
    return found[-1] if found else None


def save_checkpoint(run: Path, model: Nano, optimizer: Optimizer, state: dict) -> None:
    """A whole new folder or none: written beside, synced, renamed; then the older ones go."""
    final = run / f"checkpoint-{state['step']}"
    if final.exists():
        return
    staging = run / "checkpoint.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(model.state_dict(), staging / "model.safetensors")
    save_file(optimizer.state, staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps(state, indent=1))
    for file in staging.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    staging.rename(final)
    for old in run.glob("checkpoint-[0-9]*"):
        if old != final:
            shutil.rmtree(old)


@torch.no_grad()
def held_out(model: Nano, run: Path, pad: int, rows: int) -> dict[str, float]:
    """Nats per token on the first held-out rows of each source."""
    losses = {}
    for name in SOURCES:
        packed = np.load(run / "tokens" / f"{name}.held_out.npy")[:rows].astype(np.int64)
        if len(packed):
            losses[name] = round(model.loss(torch.from_numpy(packed), pad).item(), 4)
    return losses


# Training


def gradient(model: Nano, rows_BT: Tensor, pad: int, pool: ThreadPoolExecutor) -> float:
    """Mean loss; leaves its gradient in the parameters.

    Each thread takes the next MICRO_ROWS rows on one core: beside other programs that is about twice as fast
    as two cores in one matrix product. The parts are summed in the order of the rows, so the result does not
    depend on which thread took which.
    """
    parameters = list(model.parameters())
    trained_tokens = (rows_BT[:, 1:] != pad).sum()

    def part(micro_BT: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        loss = model.loss(micro_BT, pad, reduction="sum") / trained_tokens
        return loss.item(), torch.autograd.grad(loss, parameters)

    total = 0.0
    for p in parameters:
        p.grad = None
    for loss, grads in pool.map(part, rows_BT.split(MICRO_ROWS)):
        total += loss
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g if p.grad is None else p.grad.add_(g)
    return total


def train(args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    torch.manual_seed(args.seed)
    pad = tokenizer.token_to_id(PAD)
    shape = {
        "vocab": tokenizer.get_vocab_size(),
        "width": args.width,
        "layers": args.layers,
        "heads": args.heads,
        "inner": args.inner,
    }
    state = {"step": 0, "tokens": 0, "seconds": 0.0, "taken": {}, "shape": shape, "seed": args.seed}
    found = latest(args.run)
    if found:
        state = json.loads((found / "state.json").read_text())
    model = Nano(**state["shape"])
    optimizer = Optimizer(model, args.muon_lr, args.adam_lr, muon=args.optimizer == "muon")
    if found:
        model.load_state_dict(load_file(found / "model.safetensors"))
        optimizer.state = load_file(found / "optimizer.safetensors")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, from step {state['step']}", flush=True)
    mixture = Mixture(args.run, state["seed"], state["taken"])
    began, saved, before = time.monotonic(), time.monotonic(), state["seconds"]

    def left() -> float:
        """Share of the decay still to come; 1 before it."""
        if args.steps:
            return min(1.0, max(0.0, (args.steps - state["step"]) / max(1, args.decay_steps)))
        remaining = args.minutes * 60 - (time.monotonic() - began)
        return min(1.0, max(0.0, remaining / max(1e-9, args.decay_minutes * 60)))

    with (args.run / "log.jsonl").open("a") as log, ThreadPoolExecutor(args.threads) as pool:
        while (factor := left()) > 0:
            started = time.monotonic()
            state["step"] += 1
            rows_BT = mixture.batch(state["step"], args.rows, decay=factor < 1)
            loss = gradient(model, rows_BT, pad, pool)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor *= min(1.0, state["step"] / WARMUP_STEPS)
            optimizer.step(state["step"], factor, pool)
            state["tokens"] += int((rows_BT != pad).sum())
            state["seconds"] = before + time.monotonic() - began
            line = {
                "step": state["step"],
                "loss": round(loss, 4),
                "factor": round(factor, 5),
                "tokens": state["tokens"],
                "seconds": round(state["seconds"], 1),
                "step_s": round(time.monotonic() - started, 2),
            }
            if state["step"] % args.eval_every == 0:
                line["held_out"] = held_out(model, args.run, pad, rows=4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if time.monotonic() - saved > args.checkpoint_s:
                save_checkpoint(args.run, model, optimizer, state)
                saved = time.monotonic()
    save_checkpoint(args.run, model, optimizer, state)
    print(json.dumps({k: v for k, v in state.items() if k != "taken"}), flush=True)


def export(run: Path, folder: Path) -> None:
    """Write the newest checkpoint as a transformers folder in bf16; transformers must compute the same."""
    import transformers

    found = latest(run) or exit(f"{run}: no checkpoint to export. Train first.")
    state = json.loads((found / "state.json").read_text())
    model = Nano(**state["shape"])
    model.load_state_dict(load_file(found / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    stop, end, pad = (tokenizer.token_to_id(t) for t in (STOP, END, PAD))
    shape = state["shape"]
    config = transformers.LlamaConfig(
        vocab_size=shape["vocab"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["heads"],
        intermediate_size=shape["inner"],
        max_position_embeddings=CONTEXT,
        rms_norm_eps=NORM_EPS,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        bos_token_id=None,
        eos_token_id=stop,
        pad_token_id=pad,
    )
    theirs = transformers.LlamaForCausalLM(config).eval()
    missing, unexpected = theirs.model.load_state_dict(model.state_dict(), strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    ids = torch.randint(shape["vocab"], (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
    theirs.generation_config = transformers.GenerationConfig(eos_token_id=[stop, end], pad_token_id=pad)
    theirs.bfloat16().save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    save_tokenizer(tokenizer, folder, CONTEXT)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    text = "Once upon a time, 1234 naïve 日本 people\n\n    said <|im_start|>user\n🙂<|im_end|>\n"
    assert transformers.AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer.encode(text).ids
    print(f"{folder}: step {state['step']}, {state['tokens']:,} tokens", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True, help="folder with the text files of SOURCES")
    parser.add_argument("--sft", type=Path, nargs="*", default=[], help="folders with its question/answer files")
    parser.add_argument("--run", type=Path, required=True, help="tokenizer, token cache, checkpoints and log")
    parser.add_argument("--export", type=Path, help="write the newest checkpoint here and stop")
    parser.add_argument("--minutes", type=float, default=0.0, help="length of this invocation")
    parser.add_argument("--decay-minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=0, help="instead of --minutes: the last step")
    parser.add_argument("--decay-steps", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=5)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--inner", type=int, default=704)
    parser.add_argument("--rows", type=int, default=8, help=f"rows of {CONTEXT} tokens in a step")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon")
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--checkpoint-s", type=float, default=120.0)
    parser.add_argument("--eval-every", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.export:
        export(args.run, args.export)
        return
    tokenizer = prepare(args, [args.text, *args.sft])
    if args.minutes or args.steps:
        train(args, tokenizer)


if __name__ == "__main__":
    main()
