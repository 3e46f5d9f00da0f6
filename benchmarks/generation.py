"""How fast answers come: inlay's batches against model.generate called for one prompt after the other.

Both answer the same prompts greedily in fp32; the texts are compared. The two alternate, so that what else runs on the
machine falls on both; CPU time is that of this process.

    python benchmarks/generation.py --rows 100 --repeats 3 [--run RUN]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay import api
from inlay.data.encoding.encoder import Encoder
from inlay.data.example_tasks import find_example_task
from inlay.generation.generate import answers
from inlay.generation.request import Sampling
from inlay.models.base import find_base


def loaded(run: str | None, folder: str) -> tuple[torch.nn.Module, Encoder]:
    """The built-in base, or the adapter of a run on it, in fp32."""
    if run is not None:
        found = api.load(run, folder=folder)
        return found.model.float().eval(), found.encoder
    base = find_base("builtin:nano")
    model = AutoModelForCausalLM.from_pretrained(str(base.folder), dtype=torch.float32).eval()
    return model, Encoder(AutoTokenizer.from_pretrained(str(base.folder)))


def one_by_one(model: torch.nn.Module, encoder: Encoder, prompts: list[list[int]], new: int) -> list[str]:
    """What the documentation of transformers shows: a call for each prompt."""
    texts = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False,
                eos_token_id=sorted(encoder.stop_ids), pad_token_id=encoder.pad_id,
            )  # fmt: skip
        kept = output[0, len(prompt) :].tolist()
        kept = next((kept[:n] for n, i in enumerate(kept) if i in encoder.stop_ids), kept)
        texts.append(encoder.text(kept).strip())
    return texts


def timed(work: Callable[[], list[str]]) -> tuple[float, float, list[str]]:
    """(wall seconds, CPU seconds, texts)"""
    wall, cpu = time.perf_counter(), time.process_time()
    texts = work()
    return time.perf_counter() - wall, time.process_time() - cpu, texts


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--max-new-tokens", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--run", default=None, help="answer with the adapter of this run")
    parser.add_argument("--folder", default="results")
    given = parser.parse_args()
    model, encoder = loaded(given.run, given.folder)
    rows = find_example_task("customer_support").read()[1][: given.rows]
    prompts = [encoder.prompt(row.prompt, row.tools) for row in rows]
    sampling = Sampling(max_new_tokens=given.max_new_tokens)
    ways: dict[str, Callable[[], list[str]]] = {
        "one by one": lambda: one_by_one(model, encoder, prompts, given.max_new_tokens),
        "inlay": lambda: answers(model, encoder, prompts, sampling, given.batch_size),
    }
    answers(model, encoder, prompts[:2], Sampling(max_new_tokens=2))  # loads what loads late
    print(f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f}, {len(prompts)} prompts")
    walls, cpus = [], []
    for _ in range(given.repeats):
        (wall, cpu, texts), (wall_2, cpu_2, texts_2) = (timed(work) for work in ways.values())
        assert texts == texts_2, "the texts differ"
        walls.append(wall / wall_2)
        cpus.append(cpu / cpu_2)
        print(f"one by one {wall:.1f} s ({cpu:.1f} s CPU), inlay {wall_2:.1f} s ({cpu_2:.1f} s CPU), same texts")
    for name, ratios in (("wall", walls), ("CPU", cpus)):
        print(f"{name}: {statistics.median(ratios):.2f} times as fast ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
