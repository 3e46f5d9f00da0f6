"""One step of the hand-written engine on a device that computes nothing and refuses what lies elsewhere.

Torch's meta tensors know a shape, and of each operation what its result's is, that of the flash kernel too.
"""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any
from unittest import mock

import torch
from decoders import adapted, batch, decoder
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from inlay.engine import gpu_ops
from inlay.engine.handwritten.model import HandwrittenEngine, Packed, Part

DEVICE = "meta"


class Apart(TorchDispatchMode):
    """Refuses operations on tensors of two devices, as a GPU does: all but copies, and numbers on the CPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = tree_leaves((args, kwargs or {}))
        devices = {x.device.type for x in found if isinstance(x, torch.Tensor) and (x.dim() or x.is_meta)}
        assert len(devices) < 2 or func._schema.name in COPIES, f"{func} of tensors on {sorted(devices)}"
        return func(*args, **kwargs or {})


COPIES = ("aten::copy_", "aten::_to_copy")


def step_elsewhere(family: str) -> tuple[set[str], int]:
    """(devices of the gradients of a step, how often the flash kernel was called)"""
    model = adapted(decoder(family, torch.bfloat16))
    packed = Packed.of([Part(0, batch(), 0.1)], heads=4)
    with Apart(), mock.patch.object(gpu_ops, "attend", side_effect=gpu_ops.attend) as flash:
        for module in model.modules():
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = torch.nn.Parameter(there(value), value.requires_grad)
            for name, value in module._buffers.items():
                module._buffers[name] = None if value is None else there(value)
        moved = {f.name: there(x) for f in fields(packed) if isinstance(x := getattr(packed, f.name), torch.Tensor)}
        with (
            mock.patch.object(Packed, "of", return_value=replace(packed, **moved)),
            mock.patch.object(gpu_ops, "is_on_gpu", lambda x: x.is_meta),
            mock.patch.object(gpu_ops, "reason", return_value="Triton's kernels are for numbers"),
            mock.patch.object(torch, "isfinite"),  # of numbers nothing is known
        ):
            HandwrittenEngine(model).add_gradient(batch(), 0.1)
    return {str(p.grad.device) for p in model.parameters() if p.grad is not None}, flash.call_count


def there(x: Any) -> torch.Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=DEVICE)
