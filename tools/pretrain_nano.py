"""Pretrain `builtin:nano`, a small Llama, on a CPU: tokenizer, token cache, training, export.

    python tools/pretrain_nano.py --text TEXT --sft SFT CHAT --run RUN --minutes 100 --decay-minutes 25
    python tools/pretrain_nano.py --text TEXT --sft SFT CHAT --run RUN --export src/inlay/builtin/nano

Kill it at any time and start it again with the same command: it goes on from the last checkpoint. Everything drawn
at random follows from --seed and the step. With --minutes the learning rate falls by the clock over the last
--decay-minutes of this invocation, so the number of steps depends on the machine; RUN/log.jsonl keeps the factor of
every step. With --steps and --decay-steps the schedule depends on the step alone.

Shapes: B rows, T tokens, C channels, H heads, V vocabulary.
"""

import argparse
import json
import math
import os
import random
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from nano_corpus import END, PAD, SOURCES, STOP, documents, save_tokenizer, train_tokenizer
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor, nn

CONTEXT = 512
ROPE_THETA, NORM_EPS = 10_000.0, 1e-5
WARMUP_STEPS = 40
MICRO_ROWS = 2


class Layer(nn.Module):
    """One Llama layer; parameters are named as in transformers."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.RMSNorm(width, NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(width, NORM_EPS)
        self.self_attn = nn.ModuleDict({f"{n}_proj": nn.Linear(width, width, bias=False) for n in "qkvo"})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        normed = self.input_layernorm(x_BTC)
        q, k, v = (self.self_attn[f"{n}_proj"](normed).view(B, T, self.heads, -1).transpose(1, 2) for n in "qkv")
        mixed = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x_BTC = x_BTC + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(B, T, C))
        normed = self.post_attention_layernorm(x_BTC)
        gated = F.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        return x_BTC + self.mlp["down_proj"](gated)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Nano(nn.Module):
    def __init__(self, vocab: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width, NORM_EPS)
        half = width // heads // 2
        angles = torch.outer(torch.arange(CONTEXT), ROPE_THETA ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else 0.6 / math.sqrt(p.shape[1]))
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(p)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTC = self.embed_tokens(ids_BT)
        T = ids_BT.shape[1]
        for layer in self.layers:
            x_BTC = layer(x_BTC, self.cos[:T], self.sin[:T])
        return F.linear(self.norm(x_BTC), self.embed_tokens.weight)

    def loss(self, rows_BT: Tensor, pad: int, reduction: str = "mean") -> Tensor:
        logits_BTV, targets_BT = self(rows_BT[:, :-1]), rows_BT[:, 1:]
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), ignore_index=pad, reduction=reduction)


class Optimizer:
    """Muon (in fp32, all matrices of one shape at once) for the layers, AdamW for embeddings and norms.

    Source: https://kellerjordan.github.io/posts/muon/ . torch.optim.Muon computes in bf16, which most CPUs emulate.
    """

    def __init__(self, model: Nano, muon_lr: float, adam_lr: float, muon: bool = True) -> None:
        self.muon_lr, self.adam_lr, self.state = muon_lr, adam_lr, {}
        self.groups: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
        self.rest: list[tuple[str, Tensor]] = []
        for name, p in model.named_parameters():
            if muon and p.dim() == 2 and "embed" not in name:
                self.groups.setdefault(tuple(p.shape), []).append((name, p))
                self.state[f"{name}/m"] = torch.zeros_like(p)
            else:
                self.rest.append((name, p))
                self.state[f"{name}/m"], self.state[f"{name}/v"] = torch.zeros_like(p), torch.zeros_like(p)

    @torch.no_grad()
    def step(self, number: int, factor: float, pool: ThreadPoolExecutor) -> None:
        """One update with the learning rates times `factor`; `number` counts from 1."""
        momentum = 0.85 + 0.1 * min(1.0, number / 200)

        @torch.no_grad()
        def turn(group: tuple[tuple[int, ...], list[tuple[str, Tensor]]]) -> None:
            (shape, members), updates = group, []
            for name, p in members:
                m = self.state[f"{name}/m"].lerp_(p.grad, 1 - momentum)
                updates.append(p.grad.lerp(m, momentum))
            scale = self.muon_lr * factor * math.sqrt(max(1.0, shape[0] / shape[1]))
            for (_, p), update in zip(members, orthogonal(torch.stack(updates)), strict=True):
                p.mul_(1 - 0.1 * self.muon_lr * factor).add_(update, alpha=-scale)

        list(pool.map(turn, self.groups.items()))
        for name, p in self.rest:
            m = self.state[f"{name}/m"].lerp_(p.grad, 0.1)
            v = self.state[f"{name}/v"].lerp_(p.grad.square(), 0.05)
            denominator = (v / (1 - 0.95**number)).sqrt_().add_(1e-10)
            p.addcdiv_(m, denominator, value=-self.adam_lr * factor / (1 - 0.9**number))


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by Newton-Schulz iteration."""
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT


# Tokens ------------------------------------------------------------------------------------------------------


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
            ids = [e.ids + [end] for e in tokenizer.encode_batch(texts, add_special_tokens=False)]
            np.save(tokens / f"{name}.{part}.npy", pack(ids, newline, pad) if ids else np.zeros((0, CONTEXT), np.uint16))
            counts[part] = {
                "documents": len(texts),
                "tokens": sum(map(len, ids)),
                "bytes": sum(len(t.encode()) for t in texts),
            }
        (tokens / f"{name}.json").write_text(json.dumps(counts))
        print(name, counts, flush=True)
    return tokenizer


class Mixture:
    """Rows of the training files in the shares of SOURCES; its whole state is `taken`, rows drawn per source."""

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


# Checkpoints -------------------------------------------------------------------------------------------------


def latest(run: Path) -> Path | None:
    found = sorted(run.glob("checkpoint-[0-9]*"), key=lambda p: int(p.name.split("-")[1]))
    return found[-1] if found else None


def save_checkpoint(run: Path, model: Nano, optimizer: Optimizer, state: dict) -> None:
    """A whole new folder or none: written beside, synced, renamed; then the older ones go."""
    staging = run / "checkpoint.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    save_file(model.state_dict(), staging / "model.safetensors")
    save_file(optimizer.state, staging / "optimizer.safetensors")
    (staging / "state.json").write_text(json.dumps(state, indent=1))
    for file in staging.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    final = run / f"checkpoint-{state['step']}"
    if not final.exists():
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


# Training ----------------------------------------------------------------------------------------------------


def gradient(model: Nano, rows_BT: Tensor, pad: int, pool: ThreadPoolExecutor) -> float:
    """Mean loss; leaves its gradient in the parameters.

    Each thread takes the next MICRO_ROWS rows on one core: about twice as fast as two cores in one matrix product when
    other programs compete for them. The parts are summed in the order of the rows, so the result does not depend on
    which thread took which.
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
    shape = {"vocab": tokenizer.get_vocab_size(), "width": args.width, "layers": args.layers, "heads": args.heads,
             "inner": args.inner}  # fmt: skip
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
            line = {"step": state["step"], "loss": round(loss, 4), "factor": round(factor, 5),
                    "tokens": state["tokens"], "seconds": round(state["seconds"], 1),
                    "step_s": round(time.monotonic() - started, 2)}  # fmt: skip
            if state["step"] % args.eval_every == 0:
                line["held_out"] = held_out(model, args.run, pad, rows=4)
            log.write(json.dumps(line) + "\n")
            log.flush()
            if time.monotonic() - saved > args.checkpoint_s:
                save_checkpoint(args.run, model, optimizer, state)
                saved = time.monotonic()
    state["held_out"] = held_out(model, args.run, pad, rows=16)
    save_checkpoint(args.run, model, optimizer, state)
    print(json.dumps({k: v for k, v in state.items() if k != "taken"}), flush=True)


def export(run: Path, folder: Path) -> None:
    """Write the newest checkpoint as a transformers folder, bf16, and check that transformers computes the same."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    found = latest(run) or exit(f"{run}: no checkpoint to export. Train first.")
    state = json.loads((found / "state.json").read_text())
    model = Nano(**state["shape"])
    model.load_state_dict(load_file(found / "model.safetensors"))
    tokenizer = Tokenizer.from_file(str(run / "tokenizer" / "tokenizer.json"))
    stop, end, pad = (tokenizer.token_to_id(t) for t in (STOP, END, PAD))
    shape = state["shape"]
    config = LlamaConfig(
        vocab_size=shape["vocab"], hidden_size=shape["width"], num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"], num_key_value_heads=shape["heads"], intermediate_size=shape["inner"],
        max_position_embeddings=CONTEXT, rms_norm_eps=NORM_EPS, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA}, bos_token_id=None, eos_token_id=stop,
        pad_token_id=pad,
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).eval()
    missing, unexpected = theirs.model.load_state_dict(model.state_dict(), strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    ids = torch.randint(shape["vocab"], (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), rtol=1e-4, atol=1e-4)
    theirs.generation_config.update(eos_token_id=[stop, end], pad_token_id=pad)
    theirs.bfloat16().save_pretrained(folder)
    save_tokenizer(tokenizer, folder, CONTEXT)
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    text = "Once upon a time, 1234 naïve 日本 people\n\n    said <|im_start|>user\n🙂<|im_end|>\n"
    assert AutoTokenizer.from_pretrained(folder)(text).input_ids == tokenizer.encode(text).ids
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
