"""The doctor's lines lead with the answer and leave nothing of the record's verdicts out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from inlay.cli.render.doctor import doctor_lines
from inlay.hardware.facts import GIB, BrokenGpu, DiskFacts, GpuFacts, gpu_tier
from inlay.hardware.machine import Machine, TrainingSpeed, machine_record
from inlay.hardware.probe import Probe


@pytest.fixture(scope="module")
def machine() -> Machine:
    return machine_record()


def test_the_recommendation_comes_first_and_every_number_format_is_answered(machine):
    text = doctor_lines(machine)
    assert text[0] == "recommended here"
    for name in machine.dtypes:
        assert any(line.strip().startswith(name) for line in text)
    assert "torch " + machine.versions["torch"] in "\n".join(text)


def test_gpus_quantised_layers_and_warnings_are_shown(machine):
    gpu = GpuFacts(0, "A100", "8.0", 40 * GIB, 30 * GIB, gpu_tier(40 * GIB))
    full = replace(
        machine,
        gpus=[gpu, BrokenGpu(1, "driver too old")],
        quantization={"nf4": Probe(False, "no kernel")},
        training=TrainingSpeed(1234.5, "random Llama", [4, 128], "float32", "cpu"),
        disk=DiskFacts("results", GIB),
    )
    text = "\n".join(doctor_lines(full))
    for part in ("A100, 30.0 GiB free of 40.0 GiB", "cannot be used: driver too old", "no: no kernel"):
        assert part in text
    assert "1,234 tokens/s" in text
    assert "! disk: 1.0 GiB free at results is little" in text
    assert text.endswith("! quantization: nf4 cannot be used (no kernel). Train without it.")
