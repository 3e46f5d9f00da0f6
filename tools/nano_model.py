"""The network and the optimizer of `builtin:nano`.

Shapes: B rows, T tokens, C channels, V vocabulary.
"""

import math
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor, nn

CONTEXT = 512
ROPE_THETA, NORM_EPS = 10_000.0, 1e-5


class Layer(nn.Module):
    """One Llama layer; parameters are named as in transformers."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.input_layernorm = nn.RMSNorm(width, NORM_EPS)
        self.post_attention_layernorm = nn.RMSNorm(width, NORM_EPS)
        self.self_attn = nn.ModuleDict({f"{n}_proj": nn.Linear(width, width, bias=False) for n in "qkvo"})
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(width, inner, bias=False),
                "up_proj": nn.Linear(width, inner, bias=False),
                "down_proj": nn.Linear(inner, width, bias=False),
            }
        )

    def forward(self, x_BTC: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        B, T, C = x_BTC.shape
        normed = self.input_layernorm(x_BTC)
        q, k, v = (self.self_attn[f"{n}_proj"](normed).view(B, T, self.heads, -1).transpose(1, 2) for n in "qkv")
        mixed = nn.functional.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x_BTC = x_BTC + self.self_attn["o_proj"](mixed.transpose(1, 2).reshape(B, T, C))
        normed = self.post_attention_layernorm(x_BTC)
        gated = nn.functional.silu(self.mlp["gate_proj"](normed)) * self.mlp["up_proj"](normed)
        return x_BTC + self.mlp["down_proj"](gated)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Nano(nn.Module):
    def __init__(self, vocab: int, width: int, layers: int, heads: int, inner: int) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(vocab, width)
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(layers))
        self.norm = nn.RMSNorm(width, NORM_EPS)
        half = width // heads // 2
        angles = torch.outer(torch.arange(CONTEXT), ROPE_THETA ** (-torch.arange(half) / half))
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else 0.6 / math.sqrt(p.shape[1]))
            if "o_proj" in name or "down_proj" in name:
                nn.init.zeros_(p)

    def forward(self, ids_BT: Tensor) -> Tensor:
        x_BTC = self.embed_tokens(ids_BT)
        T = ids_BT.shape[1]
        for layer in self.layers:
            x_BTC = layer(x_BTC, self.cos[:T], self.sin[:T])
        return nn.functional.linear(self.norm(x_BTC), self.embed_tokens.weight)

    def loss(self, rows_BT: Tensor, pad: int, reduction: str = "mean") -> Tensor:
        """Cross entropy of each token given those before it; the last position, which has no target, stays in
        the products because their sizes are then multiples of 64."""
        targets_BT = nn.functional.pad(rows_BT[:, 1:], (0, 1), value=pad)
        return nn.functional.cross_entropy(
            self(rows_BT).flatten(0, 1), targets_BT.flatten(), ignore_index=pad, reduction=reduction
        )


class Optimizer:
    """Muon (in fp32, all matrices of one shape at once) for the layers, AdamW for embeddings and norms.

    Source: https://kellerjordan.github.io/posts/muon/
    torch.optim.Muon computes in bf16, which most CPUs emulate.
    """

    def __init__(self, model: Nano, muon_lr: float, adam_lr: float, muon: bool = True) -> None:
        self.muon_lr, self.adam_lr, self.state = muon_lr, adam_lr, {}
        self.groups: dict[tuple[int, ...], list[tuple[str, Tensor]]] = {}
        self.rest: list[tuple[str, Tensor]] = []
        for name, p in model.named_parameters():
            if muon and p.dim() == 2 and "embed" not in name:
                self.groups.setdefault(tuple(p.shape), []).append((name, p))
                self.state[f"{name}/m"] = torch.zeros_like(p)
            else:
                self.rest.append((name, p))
                self.state[f"{name}/m"], self.state[f"{name}/v"] = torch.zeros_like(p), torch.zeros_like(p)

    @torch.no_grad()
    def step(self, number: int, factor: float, pool: ThreadPoolExecutor) -> None:
        """One update with the learning rates times `factor`; `number` counts from 1."""
        momentum = 0.85 + 0.1 * min(1.0, number / 200)

        @torch.no_grad()
        def turn(group: tuple[tuple[int, ...], list[tuple[str, Tensor]]]) -> None:
            (shape, members), updates = group, []
            for name, p in members:
                m = self.state[f"{name}/m"].lerp_(p.grad, 1 - momentum)
                updates.append(p.grad.lerp(m, momentum))
            scale = self.muon_lr * factor * math.sqrt(max(1.0, shape[0] / shape[1]))
            for (_, p), update in zip(members, orthogonal(torch.stack(updates)), strict=True):
                p.mul_(1 - 0.1 * self.muon_lr * factor).add_(update, alpha=-scale)

        list(pool.map(turn, self.groups.items()))
        for name, p in self.rest:
            m = self.state[f"{name}/m"].lerp_(p.grad, 0.1)
            v = self.state[f"{name}/v"].lerp_(p.grad.square(), 0.05)
            denominator = (v / (1 - 0.95**number)).sqrt_().add_(1e-10)
            p.addcdiv_(m, denominator, value=-self.adam_lr * factor / (1 - 0.9**number))


def orthogonal(x: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices, roughly, by Newton-Schulz iteration."""
    wide = x if x.shape[1] <= x.shape[2] else x.mT
    wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = wide @ wide.mT
        wide = 3.4445 * wide + (-4.775 * gram + 2.0315 * gram @ gram) @ wide
    return wide if x.shape[1] <= x.shape[2] else wide.mT
