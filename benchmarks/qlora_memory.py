"""What a base in NF4 saves of the memory of a run, beside what `inlay plan` predicts for its weights.

    python benchmarks/qlora_memory.py BASE [--steps 2] [--json]

Trains BASE (a folder, or builtin:nano) in bf16 and in NF4, with gradient checkpointing and two short rows a step, each in a
process of its own: the peak of its resident memory, load and quantization included. Time says nothing here; the load of
the machine does not matter.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", help="a folder of weights, or builtin:nano")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--train", choices=("none", "nf4"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        print(json.dumps(trained(given.base, given.steps, given.train)))
        return
    command = [sys.executable, __file__, given.base, "--steps", str(given.steps), "--train"]
    runs = {
        kind: json.loads(subprocess.run([*command, kind], capture_output=True, check=True).stdout.splitlines()[-1])
        for kind in ("none", "nf4")
    }
    predicted = runs["none"]["predicted_weights"] - runs["nf4"]["predicted_weights"]
    saved = runs["none"]["peak"] - runs["nf4"]["peak"]
    found = {
        "bf16": runs["none"],
        "nf4": runs["nf4"],
        "predicted": predicted,
        "saved": saved,
        "share": saved / predicted,
    }
    print(
        json.dumps(found, indent=1)
        if given.json
        else f"peak {runs['none']['peak'] / 1e6:,.0f} MB in bf16, {runs['nf4']['peak'] / 1e6:,.0f} MB in NF4: saves "
        f"{saved / 1e6:,.0f} MB of the {predicted / 1e6:,.0f} MB predicted for the weights, {saved / predicted:.0%}"
    )


def trained(base: str, steps: int, quantization: str) -> dict[str, Any]:
    from inlay import api
    from inlay.runs.reporter import PlainReporter

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        turns = [
            ({"role": "user", "content": f"{k} + {k}?"}, {"role": "assistant", "content": f"{2 * k}."})
            for k in range(40)
        ]
        (folder / "rows.jsonl").write_text("".join(json.dumps({"messages": pair}) + "\n" for pair in turns))
        config = {
            "model": {"base_model": base, "device": "cpu", "dtype": "bfloat16", "quantization": quantization},
            "data": {"train": str(folder / "rows.jsonl"), "max_length": 64, "check": "off"},
            "adapter": {"rank": 16, "alpha": 32},
            "train": {"batch_size": 2, "micro_batch_size": 2, "max_steps": steps, "eval_steps": steps, "save_steps": steps,
                      "gradient_checkpointing": True},
            "eval": {"max_rows": 2, "retention_rows": 0},
            "track": {"trackers": []},
            "output": {"folder": str(folder)},
        }  # fmt: skip
        wanted = "lora" if quantization == "none" else "qlora"
        forecast = next(one for one in api.plan(config).forecasts if one.method == wanted)
        run = api.train(config, reporter=PlainReporter())
        peak = max(line["memory_bytes"] for line in run.metrics if "memory_bytes" in line)
        return {"peak": peak, "predicted_weights": forecast.memory.weights}


if __name__ == "__main__":
    main()
