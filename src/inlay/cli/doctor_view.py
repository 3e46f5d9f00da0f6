"""The machine record as lines for a person. Knows the record's keys and nothing of torch."""

from __future__ import annotations

from typing import Any

GIB = 1024**3


def lines(record: dict[str, Any]) -> list[str]:
    """The record, the answer to "what should I train here" first, one fact a line."""
    out = _choice(record)
    out += ["", "machine"]
    cpu, memory, disk = record["cpu"], record["memory"], record["disk"]
    out.append(_row("cpu", f"{cpu['model']}, {cpu['cores']} cores ({_features(cpu)})"))
    out.append(_row("memory", f"{_gib(memory['available_bytes'])} available of {_gib(memory['total_bytes'])}"))
    out.append(_row("disk", f"{_gib(disk['free_bytes'])} free at {disk['folder']}"))
    out += _gpus(record)
    out += ["", "what works"]
    for name, probe in record["dtypes"].items():
        out.append(_probe(name, probe, record["device"]["device"]))
    if record["quantization"] is None:
        out.append(_row("quantization", "not tried in the quick form"))
    for name, probe in (record["quantization"] or {}).items():
        out.append(_probe(name, probe, record["device"]["device"]))
    training = record["training"]
    if training and "error" not in training:
        out.append(_row("training", f"{training['tokens_per_s']:,.0f} tokens/s of LoRA on a {training['model']}"))
    out += ["", "what fits a GPU (billions of parameters)"]
    for tier in record["gpu_tiers"]:
        sizes = f"LoRA bfloat16 {tier['lora_bfloat16_billions']:g}, QLoRA nf4 {tier['qlora_nf4_billions']:g}"
        out.append(_row(f"{tier['memory_gib']:g} GiB", sizes))
    out += ["", "versions"]
    out.append(_row("python", f"{record['python']} on {record['platform']}"))
    present = {name: version for name, version in record["versions"].items() if version is not None}
    out.append(_row("libraries", ", ".join(f"{name} {version}" for name, version in present.items())))
    absent = [name for name in record["versions"] if name not in present]
    if absent:
        out.append(_row("not here", ", ".join(absent)))
    if record["warnings"]:
        out += ["", "warnings", *(f"  ! {warning}" for warning in record["warnings"])]
    return out


def _choice(record: dict[str, Any]) -> list[str]:
    best = record["recommended"]
    sizes = best["model_billions"]
    products = record["fp32_products"]
    checkpointing = "on" if best["gradient_checkpointing"] else "off"
    return [
        "recommended here",
        _row("model size", f"up to {sizes['comfortable']:g}B at a good pace, {sizes['largest']:g}B fits"),
        _row("device", f"{best['device']} ({record['device']['reason']})"),
        _row("dtype", f"{best['dtype']} ({record['dtype']['reason']})"),
        *([_row("fp32 products", f"{products['precision']} ({products['reason']})")] if products else []),
        _row("quantization", f"{best['quantization']} ({best['quantization_reason']})"),
        _row("batch", f"micro_batch_size {best['micro_batch_size']}, gradient_checkpointing {checkpointing}"),
    ]


def _gpus(record: dict[str, Any]) -> list[str]:
    out = []
    for gpu in record["gpus"]:
        name = f"cuda:{gpu['index']}"
        if "error" in gpu:
            out.append(_row(name, f"cannot be used: {gpu['error']}"))
            continue
        fits = gpu["fits"]
        sizes = f"LoRA to {fits['lora_bfloat16_billions']:g}B, nf4 to {fits['qlora_nf4_billions']:g}B"
        free = f"{_gib(gpu['free_bytes'])} free of {_gib(gpu['total_bytes'])}"
        out.append(_row(name, f"{gpu['name']}, {free}, capability {gpu['compute_capability']}; {sizes}"))
    if record["mps"]["available"]:
        out.append(_row("mps", f"Apple GPU ({record['mps']['note']})"))
    return out or [_row("gpu", "none")]


def _features(cpu: dict[str, Any]) -> str:
    known = [name for name, here in cpu["features"].items() if here]
    return ", ".join(known) if known else cpu["torch_capability"]


def _probe(name: str, probe: dict[str, Any], device: str) -> str:
    if not probe["works"]:
        return _row(name, f"no: {probe['reason']}")
    if probe["speed_gflops"] is None:
        return _row(name, f"yes: {probe['reason']}")
    per_core = " per core" if device == "cpu" else ""
    return _row(name, f"yes, {probe['speed_gflops']:,.3g} GFLOP/s{per_core}")


def _row(name: str, text: str) -> str:
    return f"  {name:<13} {text}"


def _gib(size: int) -> str:
    return f"{size / GIB:.1f} GiB"
