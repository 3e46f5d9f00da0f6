"""How long the adapter library takes beside PEFT, and how exact both are. Measures take turns; medians and ratios.

Run: python benchmarks/library.py compose [--width 4096] [--modules 1] [--rank 64] [--pairs 3] [--json]
     python benchmarks/library.py merge --base FOLDER --adapter FOLDER [--pairs 3]     each in a process of its own
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch import Tensor, nn

from inlay.adapters.compose import RankLimit, exact_sum, shortened
from inlay.adapters.lowrank import lowrank_of, state_of
from inlay.methods.adapter_state import AdapterState

WEIGHTS = (0.7, 0.3)
MODULES_OF_8B = 224  # seven linear layers in each of 32 blocks
Changes = list[Tensor]


class Layers(nn.Module):
    """Square linear layers, of which only the shapes count here."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(count))


def two_adapters(width: int, modules: int, rank: int) -> Any:
    """A PeftModel with the random adapters `a` and `b`."""
    torch.manual_seed(0)
    settings = {"r": rank, "lora_alpha": 2 * rank, "target_modules": [f"layers.{n}" for n in range(modules)]}
    model: Any = get_peft_model(Layers(width, modules), LoraConfig(**settings), adapter_name="a")
    model.add_adapter("b", LoraConfig(**settings, use_rslora=False))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 0.02)
    return model


def exact_changes(model: Any) -> Changes:
    """0.7 ΔWa + 0.3 ΔWb of each layer in float64."""
    found = []
    for layer in model.base_model.model.layers:
        parts = [w * layer.scaling[n] * (layer.lora_B[n].weight.double() @ layer.lora_A[n].weight.double())
                 for w, n in zip(WEIGHTS, "ab", strict=True)]  # fmt: skip
        found.append(sum(parts[1:], parts[0]).detach())
    return found


def by_peft(model: Any, kind: str, rank: int) -> Changes:
    """What PEFT's `add_weighted_adapter` makes; its svd without the useless parts of full matrices, which is faster."""
    more = {"svd_rank": 2 * rank, "svd_full_matrices": False} if kind == "svd" else {}
    model.add_weighted_adapter(["a", "b"], list(WEIGHTS), "sum", combination_type=kind, **more)
    return [layer.get_delta_weight("sum").double() for layer in model.base_model.model.layers]


def by_inlay(states: tuple[AdapterState, AdapterState]) -> AdapterState:
    """The same sum here, with its rank looked at."""
    parts = [(weight, lowrank_of(state, "base")) for weight, state in zip(WEIGHTS, states, strict=True)]
    return state_of(shortened(exact_sum(parts), RankLimit()).adapter)


def changes_of(state: AdapterState, modules: int) -> Changes:
    name = "base_model.model.layers.{}.lora_{}.weight"
    return [state.tensors[name.format(n, "B")].double() @ state.tensors[name.format(n, "A")].double()
            for n in range(modules)]  # fmt: skip


def relative_error(got: Changes, exact: Changes) -> float:
    off = sum(float((g - e).norm()) ** 2 for g, e in zip(got, exact, strict=True))
    return float((off / sum(float(e.norm()) ** 2 for e in exact)) ** 0.5)


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of all threads, which other work on the machine hardly changes; the result."""
    began = time.process_time()
    result = call()
    return time.process_time() - began, result


def compose(options: argparse.Namespace) -> dict[str, Any]:
    """Two adapters composed here and by PEFT, in turns: seconds for each module, and relative error."""
    model = two_adapters(options.width, options.modules, options.rank)
    states = tuple(AdapterState.of(model, name) for name in "ab")
    exact = exact_changes(model)
    times: dict[str, list[float]] = {}
    errors: dict[str, float] = {}
    for _ in range(options.pairs):
        for kind in ("linear", "cat", "svd"):
            seconds, state = timed(lambda: by_inlay((states[0], states[1])))
            times.setdefault("inlay", []).append(seconds / options.modules)
            errors["inlay"] = relative_error(changes_of(state, options.modules), exact)
            with torch.no_grad():
                seconds, changes = timed(lambda kind=kind: by_peft(model, kind, options.rank))  # type: ignore[misc]
            times.setdefault(kind, []).append(seconds / options.modules)
            errors[kind] = relative_error(changes, exact)
            model.delete_adapter("sum")
    median = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        name: {
            "module_s": seconds,
            "least_s": min(times[name]),
            "most_s": max(times[name]),
            "ratio": seconds / median["inlay"],
            "adapter_of_224_modules_s": MODULES_OF_8B * seconds,
            "error": errors[name],
        }
        for name, seconds in median.items()
    }


def show_compose(found: dict[str, Any]) -> None:
    print(
        "| | CPU s a module: median (least to most) | of inlay's | 224 modules, CPU s | relative error |\n|---|---|---|---|---|"
    )
    for name, row in found.items():
        print(
            f"| {name if name == 'inlay' else f'PEFT {name}'} | {row['module_s']:.3f} ({row['least_s']:.3f} to "
            f"{row['most_s']:.3f}) | {row['ratio']:.1f}× | {row['adapter_of_224_modules_s']:.0f} | {row['error']:.1e} |"
        )


def merge(options: argparse.Namespace) -> dict[str, Any]:
    """One adapter merged here and by PEFT, in turns, each in a process: seconds, peak memory, error of the weights."""
    found: dict[str, list[dict[str, float]]] = {"inlay": [], "PEFT": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.pairs):
            for name in found:
                out = Path(folder, f"{name}-{number}")
                arguments = [
                    sys.executable,
                    __file__,
                    f"merge-{name}",
                    "--base",
                    options.base,
                    "--adapter",
                    options.adapter,
                ]
                ended = subprocess.run([*arguments, "--out", str(out)], check=True, capture_output=True, text=True)
                found[name].append(json.loads(ended.stdout.splitlines()[-1]))
                if number:
                    shutil.rmtree(out)
        errors = {name: merged_error(options, Path(folder, f"{name}-0")) for name in found}
    rows = {name: {key: statistics.median(one[key] for one in ones) for key in ones[0]} for name, ones in found.items()}
    for name, row in rows.items():
        seconds = [one["wall_s"] for one in found[name]]
        row |= {"least_s": min(seconds), "most_s": max(seconds), "error": errors[name]}
        row |= {f"{key}_ratio": row[key] / rows["PEFT"][key] for key in ("wall_s", "cpu_s", "peak_bytes")}
    return rows


def merge_once(options: argparse.Namespace) -> None:
    """Merges in this process and prints its seconds and its own peak memory, libraries left out."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if options.measure == "merge-inlay":
        from inlay.adapters.reference import reference
        from inlay.runs.reporter import PlainReporter
        from inlay.workflows.adapter_library.merge import MergeOptions
        from inlay.workflows.adapter_library.merge import merge as merge_here

        def work() -> None:
            one = replace(reference(options.adapter, "results"), base=options.base, revision=None)
            merge_here([(one, 1.0)], Path(options.out), MergeOptions(check=False), PlainReporter())
    else:
        from peft import PeftModel

        def work() -> None:
            model = AutoModelForCausalLM.from_pretrained(options.base, dtype="auto")
            PeftModel.from_pretrained(model, options.adapter).merge_and_unload().save_pretrained(options.out)
            AutoTokenizer.from_pretrained(options.base).save_pretrained(options.out)

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began, cpu = time.perf_counter(), time.process_time()
    work()
    took, cpu = time.perf_counter() - began, time.process_time() - cpu
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"wall_s": took, "cpu_s": cpu, "peak_bytes": peak}))


def merged_error(options: argparse.Namespace, folder: Path) -> float:
    """‖stored - (W + ΔW)‖ / ‖ΔW‖ over the weights that the adapter changes, by float64 arithmetic apart from both."""
    factors = lowrank_of(AdapterState.read(Path(options.adapter)), "base").factors
    wrong = change = 0.0
    places = {name: file for file in Path(options.base).glob("*.safetensors") for name in names_in(file)}
    for file in sorted(folder.glob("*.safetensors")):
        for name in names_in(file):
            if (module := name.removesuffix(".weight")) in factors:
                delta = factors[module].B_OR.double() @ factors[module].A_RI.double()
                stored, base = tensor_in(file, name), tensor_in(places[name], name)
                wrong += float((stored - base - delta).square().sum())
                change += float(delta.square().sum())
    return float((wrong / change) ** 0.5)


def names_in(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def tensor_in(file: Path, name: str) -> Tensor:
    with safe_open(file, "pt") as opened:
        return opened.get_tensor(name).double()  # type: ignore[no-any-return]


def show_merge(found: dict[str, Any]) -> None:
    print(
        "| | s: median (least to most) | of PEFT's | CPU s | own peak memory, MB | of PEFT's | error, of ‖ΔW‖ |\n|---|---|---|---|---|---|---|"
    )
    for name, row in found.items():
        print(
            f"| {name} | {row['wall_s']:.2f} ({row['least_s']:.2f} to {row['most_s']:.2f}) | {row['wall_s_ratio']:.2f}× | "
            f"{row['cpu_s']:.2f} | {row['peak_bytes'] / 1e6:.0f} | {row['peak_bytes_ratio']:.2f}× | {row['error']:.4f} |"
        )


MEASURES: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "compose": (compose, show_compose),
    "merge": (merge, show_merge),
}
"""Name -> (measure, what prints it)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=[*MEASURES, "merge-inlay", "merge-PEFT"])
    parser.add_argument("--base")
    parser.add_argument("--adapter")
    parser.add_argument("--out")
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--modules", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    if options.measure not in MEASURES:
        merge_once(options)
        return
    measure, show = MEASURES[options.measure]
    found = measure(options)
    facts = {"machine": platform.machine(), "threads": torch.get_num_threads(), "load": os.getloadavg()[0]}
    if options.json:
        print(json.dumps({"facts": facts, options.measure: found}, indent=2))
        return
    print(f"{facts['threads']} threads, load {facts['load']:.1f}, torch {torch.__version__}\n")
    show(found)


if __name__ == "__main__":
    main()
