"""TRL's whole preparation of a file beside inlay's, over the same rows in one run.

    python benchmarks/data_prepare_trl.py [--rows 20000] [--repeats 3] [--trl-python PATH] [--tokenizer FOLDER]

TRL runs in an environment of its own, which is made here unless `--trl-python` names the Python of one. Both sides begin
with a JSONL of dialogues of about 1 KB and a tokenizer in memory (by default that of `builtin:nano`), in fresh processes with empty
caches, and alternate:

- inlay: all that `train` does before it loads the base: reading, checking, rendering, encoding, weighing the answers,
  splitting, writing the cache;
- trl: `load_dataset` and what `SFTTrainer` does to the rows as it is made: by default, where one process prepares and
  every token is trained (trl-1), and with `assistant_only_loss` in one process and in as many as there are cores
  (trl-N-answers);
- raw: the tokenizer's own `encode_batch` over the rendered texts, in memory.

What each costs on 100 rows is taken off, so that starting a trainer is not counted. Prints rows a second by wall clock and
by CPU, the ratios of each round, and the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from data_prepare import write_rows

NANO = Path(__file__).resolve().parents[1] / "src" / "inlay" / "builtin" / "nano"
REQUIREMENTS = ("torch>=2.9,<2.14", "trl>=1.16,<2")
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FEW = 100


def chatml(folder: str) -> Any:
    """The tokenizer, with a template that marks the answers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = GENERATION
    return tokenizer


def cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(one.ru_utime + one.ru_stime for one in both)


def trl(path: str, tokenizer_at: str, processes: int, answers_only: bool, folder: str) -> dict[str, Any]:
    import trl
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM

    tokenizer = chatml(tokenizer_at)
    model = AutoModelForCausalLM.from_pretrained(NANO)
    settings = trl.SFTConfig(
        output_dir=folder, dataset_num_proc=processes if processes > 1 else None, assistant_only_loss=answers_only, max_length=4096,
        use_cpu=True, bf16=False, report_to=[], eos_token="<|im_end|>",
    )  # fmt: skip
    wall, cpu = time.perf_counter(), cpu_s()
    rows = load_dataset("json", data_files=path, split="train", cache_dir=f"{folder}/datasets")
    trainer = trl.SFTTrainer(model, args=settings, train_dataset=rows, processing_class=tokenizer)
    tokens = trainer.train_dataset[0]
    found = {"wall": time.perf_counter() - wall, "cpu": cpu_s() - cpu, "rows": len(trainer.train_dataset)}
    masked = -100 in tokens.get("labels", [])
    assert masked == answers_only, tokens
    return found | {"versions": f"trl {trl.__version__}"}


def inlay(path: str, tokenizer_at: str, raw: bool) -> dict[str, Any]:
    from inlay.config.sections.data import DataConfig
    from inlay.data.encoding.encoder import Encoder
    from inlay.data.prepare import prepare
    from inlay.data.reading.read import stream_examples

    tokenizer = chatml(tokenizer_at)
    tokenizer.chat_template = GENERATION.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    encoder = Encoder(tokenizer)
    if not raw:
        wall, cpu = time.perf_counter(), cpu_s()
        rows = prepare(DataConfig(train=path), encoder, 4096, 200, 0).rows
        return {"wall": time.perf_counter() - wall, "cpu": cpu_s() - cpu, "rows": rows}
    texts = [encoder.tokenizer.decode(t.input_ids) for _, t in encoder.examples(stream_examples(path)[1])]
    wall, cpu = time.perf_counter(), cpu_s()
    for start in range(0, len(texts), 2048):
        encoder.tokenizer.backend_tokenizer.encode_batch(texts[start : start + 2048], add_special_tokens=False)
    return {"wall": time.perf_counter() - wall, "cpu": cpu_s() - cpu, "rows": len(texts)}


def child(python: str, kind: str, path: Path, tokenizer_at: str) -> dict[str, Any]:
    """One preparation in a process of its own, with caches that are empty."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        own = {"INLAY_CACHE": folder, "HF_HOME": folder, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        command = [python, __file__, "--child", kind, "--file", str(path), "--folder", folder,
                   "--tokenizer", tokenizer_at]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | own)
    if done.returncode:
        sys.exit(done.stderr)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def trl_python(folder: Path) -> str:
    """The Python of a new environment with TRL in it."""
    subprocess.run([sys.executable, "-m", "venv", folder / "trl"], check=True)
    python = str(folder / "trl" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS], check=True)
    return python


def compare(rows: int, repeats: int, other: str, tokenizer_at: str, folder: Path) -> None:
    few, many = folder / "few.jsonl", folder / "many.jsonl"
    write_rows(few, FEW)
    write_rows(many, rows)
    cores = len(os.sched_getaffinity(0))
    kinds = list(dict.fromkeys(["raw", "inlay", "trl-1", "trl-1-answers", f"trl-{cores}-answers"]))
    pythons = {kind: other if kind.startswith("trl") else sys.executable for kind in kinds}
    fixed = {kind: child(pythons[kind], kind, few, tokenizer_at) for kind in kinds}
    print(f"{fixed['trl-1']['versions']}, {rows} rows, {many.stat().st_size / 1e6:.0f} MB, {cores} cores, "
          f"load {os.getloadavg()[0]:.1f}", flush=True)  # fmt: skip
    rates: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for n in range(repeats):
        for kind in kinds:
            found = child(pythons[kind], kind, many, tokenizer_at)
            assert found["rows"] == rows, found
            rates[kind].append(tuple((rows - FEW) / max(1e-9, found[c] - fixed[kind][c]) for c in ("wall", "cpu")))  # type: ignore[arg-type]
        print(f"round {n + 1}: " + ", ".join(f"{k} {rates[k][-1][0]:.0f}" for k in kinds) + f" rows/s, load {os.getloadavg()[0]:.1f}",
              flush=True)  # fmt: skip
    for place, what in enumerate(("wall", "CPU")):
        print(f"\n| {what} | rows/s, median | inlay is so many times as fast: median (least to most) |\n|---|---|---|")
        for kind in kinds:
            ratios = [ours[place] / theirs[place] for ours, theirs in zip(rates["inlay"], rates[kind], strict=True)]
            print(f"| {kind} | {statistics.median(r[place] for r in rates[kind]):.0f} "
                  f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |")  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=int, default=20_000)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--trl-python", help="the Python of an environment that has TRL; by default one is made")
    options.add_argument("--tokenizer", default=str(NANO), help="a folder with a byte-level tokenizer")
    options.add_argument("--folder", type=Path, help="where the files are written; a temporary folder by default")
    options.add_argument("--child", help=argparse.SUPPRESS)
    options.add_argument("--file", help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.child in ("inlay", "raw"):
        print(json.dumps(inlay(chosen.file, chosen.tokenizer, chosen.child == "raw")))
        return
    if chosen.child:
        _, processes, *answers = chosen.child.split("-")
        print(json.dumps(trl(chosen.file, chosen.tokenizer, int(processes), bool(answers), str(chosen.folder))))
        return
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        other = chosen.trl_python or trl_python(Path(folder))
        compare(chosen.rows, chosen.repeats, other, chosen.tokenizer, Path(folder))


if __name__ == "__main__":
    main()
