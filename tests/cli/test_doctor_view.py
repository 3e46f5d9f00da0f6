"""The doctor's lines lead with the answer and leave nothing of the record's verdicts out."""

from __future__ import annotations

from typing import Any

import pytest

from inlay.cli.doctor_view import lines
from inlay.hardware.facts import GIB, gpu_tier
from inlay.workflows.doctor import machine_record


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    return machine_record(quick=True)


def test_the_recommendation_comes_first_and_every_number_format_is_answered(record):
    text = lines(record)
    assert text[0] == "recommended here"
    for name in record["dtypes"]:
        assert any(line.strip().startswith(name) for line in text)
    assert "torch " + record["versions"]["torch"] in "\n".join(text)


def test_gpus_quantised_layers_and_warnings_are_shown(record):
    gpu = {"index": 0, "name": "A100", "compute_capability": "8.0", "fits": gpu_tier(40 * GIB)}
    gpu |= {"total_bytes": 40 * GIB, "free_bytes": 30 * GIB}
    probes = {"nf4": {"works": False, "reason": "no kernel", "speed_gflops": None}}
    full = {
        **record,
        "gpus": [gpu, {"index": 1, "error": "driver too old"}],
        "quantization": probes,
        "training": {"tokens_per_s": 1234.5, "model": "random Llama"},
        "warnings": ["disk: little"],
    }
    text = "\n".join(lines(full))
    for part in ("A100, 30.0 GiB free of 40.0 GiB", "cannot be used: driver too old", "no: no kernel"):
        assert part in text
    assert "1,234 tokens/s" in text
    assert text.endswith("! disk: little")
