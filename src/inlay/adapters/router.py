"""The adapter that a query is for, or none: a logistic regression over its words and letters. No model pass, no torch.

Shapes: F features, A arms, N rows.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from inlay.errors import ConfigError
from inlay.storage import write_file
from inlay.typed_json import JsonObject

FEATURES: Final = 1 << 16
SCHEMA: Final = 1
_LONGEST: Final = 4_000
"""Characters of a query that are looked at, half at its beginning and half at its end."""
_LARGEST_FILE: Final = 64 << 20
_WORD: Final = re.compile(r"\w+|[^\w\s]")
Values = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Routed:
    """The arm for one query."""

    arm: str | None
    """None: the base alone."""
    probability: float
    """Of the arm; of none where that is the base."""


@dataclass(frozen=True, slots=True)
class Router:
    """Weights, and how sure it must be. The base is the arm of weight 0, so a query without a known word goes to it."""

    arms: tuple[str, ...]
    """Adapters as `NAME:VERSION`, or as the runs that they are."""
    weights_FA: npt.NDArray[np.float16]
    temperature: float
    threshold: float
    """An arm less probable than this gives way to the base."""
    base_digest: str
    judged: JsonObject = field(default_factory=dict)
    """The figures by which it was accepted."""

    def probabilities(self, text: str) -> Values:
        """(A + 1,) of the base and of each arm."""
        places, values = features(text)
        logits_A = values @ self.weights_FA[places].astype(np.float32) / self.temperature
        return softmax(np.concatenate([np.zeros(1, np.float32), logits_A]))

    def choose(self, text: str) -> Routed:
        """The arm for a query."""
        found = self.probabilities(text)
        best = int(np.argmax(found[1:])) + 1
        if found[best] < max(self.threshold, found[0]):
            return Routed(None, float(found[0]))
        return Routed(self.arms[best - 1], float(found[best]))

    def write(self, path: Path) -> None:
        """Writes the router as one JSON file. Raises: StorageError."""
        packed = zlib.compress(np.ascontiguousarray(self.weights_FA.T).tobytes(), 6)
        value = {
            "schema": SCHEMA, "arms": list(self.arms), "features": FEATURES,
            "temperature": self.temperature, "threshold": self.threshold, "base_digest": self.base_digest,
            "judged": self.judged, "weights": base64.b64encode(packed).decode("ascii"),
        }  # fmt: skip
        write_file(path, json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")

    @staticmethod
    def read(path: Path) -> Router:
        """The router of a file. Raises: ConfigError."""
        try:
            if path.stat().st_size > _LARGEST_FILE:
                raise ValueError(f"larger than {_LARGEST_FILE >> 20} MB")
            value = json.loads(path.read_text(encoding="utf-8"))
            if value["schema"] != SCHEMA or value["features"] != FEATURES:
                raise ValueError(f"schema {value['schema']}; this inlay reads {SCHEMA}")
            return _checked(value)
        except OSError as error:
            raise ConfigError(
                f"{path}: cannot be read: {error.strerror}. Make a router: inlay route fit A B."
            ) from None
        except (ValueError, KeyError, TypeError, zlib.error) as error:
            raise ConfigError(
                f"{path}: is no router that can be used ({error}). Make one: inlay route fit A B."
            ) from None


def _checked(value: JsonObject) -> Router:
    """The router of a JSON value. Raises: ValueError, KeyError, TypeError, zlib.error."""
    arms = tuple(str(arm) for arm in value["arms"])
    wanted = 2 * FEATURES * len(arms)
    # one byte more than there may be: what unpacks to more is refused, not held
    raw = zlib.decompressobj().decompress(base64.b64decode(value["weights"], validate=True), wanted + 1)
    if not arms or len(raw) != wanted:
        raise ValueError("its weights do not fit its arms")
    weights_FA = np.frombuffer(raw, np.float16).reshape(len(arms), FEATURES).T
    temperature, threshold = float(value["temperature"]), float(value["threshold"])
    if not np.isfinite(weights_FA).all():
        raise ValueError("its weights are not all numbers")
    if not (0 < temperature < math.inf and 0 <= threshold <= 1):
        raise ValueError("its temperature or threshold is out of range")
    judged = dict(value.get("judged") or {})
    return Router(arms, np.ascontiguousarray(weights_FA), temperature, threshold, str(value["base_digest"]), judged)


def features(text: str) -> tuple[npt.NDArray[np.intp], Values]:
    """(places, values) of a text: its words, pairs of words, and three letters each, hashed; damped counts of length 1."""
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}\n{text[-_LONGEST // 2 :]}"
    words = _WORD.findall(text.lower())
    joined = f" {' '.join(words)} "
    found = [f"w{word}" for word in words]
    found += [f"p{first} {second}" for first, second in pairwise(words)]
    found += [f"c{joined[n : n + 3]}" for n in range(len(joined) - 2)]
    counts = Counter(zlib.crc32(one.encode("utf-8", "surrogatepass")) % FEATURES for one in found)
    values = np.log1p(np.fromiter(counts.values(), np.float32, len(counts)))
    norm = np.float32(max(float(np.sqrt((values**2).sum())), 1e-12))
    return np.fromiter(counts, np.intp, len(counts)), (values / norm).astype(np.float32)


def softmax(logits: Values) -> Values:
    """Probabilities along the last axis."""
    raised: Values = np.exp(logits - logits.max(-1, keepdims=True))
    shares: Values = raised / raised.sum(-1, keepdims=True)
    return shares


def names_of(arms: Sequence[str]) -> list[str]:
    """The base and the arms, in the order of `Router.probabilities`."""
    return ["base", *arms]
