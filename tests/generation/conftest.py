"""The small base that tests of answers share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from inlay.data.encoding.encoder import Encoder


@pytest.fixture(scope="module")
def model(tiny_base: Path) -> Any:
    found = AutoModelForCausalLM.from_pretrained(str(tiny_base), dtype=torch.float32).eval()
    with torch.no_grad():  # flat random logits would make the argmax a matter of rounding
        found.lm_head.weight.mul_(20)
    return found


@pytest.fixture(scope="module")
def encoder(tiny_base: Path) -> Encoder:
    return Encoder(AutoTokenizer.from_pretrained(str(tiny_base)))
