"""How long the adapter library takes beside PEFT, and how exact both are. Measures take turns; medians and ratios
of CPU seconds.

Run: python benchmarks/library.py compose [--width 4096] [--modules 1] [--rank 64] [--pairs 3] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
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


MEASURES: dict[str, tuple[Callable[[argparse.Namespace], dict[str, Any]], Callable[[dict[str, Any]], None]]] = {
    "compose": (compose, show_compose),
}
"""Name -> (measure, what prints it)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--modules", type=int, default=1)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
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
