"""What is given back of mapped weights, and that they keep their values."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from test_base import model_config
from torch import nn

from inlay.models.base import find_base, load_model
from inlay.models.memory_mapped import page_out
from inlay.models.quantization import QUANTIZATIONS
from parts import NANO


def test_paged_out_weights_keep_their_values(tmp_path: Path) -> None:
    values = torch.arange(3_000_000, dtype=torch.float32)
    (tmp_path / "weights").write_bytes(values.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "weights"), shared=False, size=len(values))
    for tensor in (values.clone(), mapped):
        page_out(tensor.data_ptr() + 4, tensor.nbytes - 4)
        assert torch.equal(tensor, values)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells how much of a file is resident")
def test_of_a_quantized_base_the_file_that_it_was_made_of_is_not_resident() -> None:
    ref, config = find_base(str(NANO), None), model_config(NANO, quantization="nf4")
    weights = (NANO / "model.safetensors").resolve()
    before = resident_bytes(weights)  # of other tests
    model = load_model(ref, config.model, torch.bfloat16, "cpu", "nf4")
    assert resident_bytes(weights) - before < weights.stat().st_size / 10
    plain = load_model(ref, config.model, torch.bfloat16, "cpu", "none")
    assert torch.equal(model.get_input_embeddings().weight, plain.get_input_embeddings().weight)
    layer = next(m for m in model.modules() if isinstance(m, nn.Linear) and hasattr(m.weight, "quant_state"))
    assert torch.isfinite(QUANTIZATIONS["nf4"].dequantise(layer)).all()


def resident_bytes(file: Path) -> int:
    """Of all mappings of the file."""
    lines, found, inside = Path("/proc/self/smaps").read_text().splitlines(), 0, False
    for line in lines:
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(file))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
