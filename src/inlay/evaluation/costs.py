"""Time as money and energy, under assumptions that are stated beside every figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from inlay.errors import ConfigError
from inlay.runs.reporter import bytes_shown

WATTS: Final = {"cpu": 65.0, "mps": 40.0, "cuda": 400.0}
"""Watts that a computing machine is taken to draw, by device: round figures, to be replaced by one's own."""
UTILISATION: Final = 0.5
"""Share of the paid time in which a serving machine is taken to have requests to answer."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Price, power draw and utilisation of a machine."""

    price_per_hour: float
    """Price of the complete machine, in any currency."""
    watts: float
    utilisation: float = UTILISATION
    assumed: tuple[str, ...] = ()
    """Names of those that were not given."""

    @staticmethod
    def of(device: str, price: float | None, watts: float | None, utilisation: float | None) -> Costs:
        """The given figures, and round ones for those left out: a price of 1, WATTS, UTILISATION.

        Raises: ConfigError for a figure that can be none.
        """
        given = {"price": price, "watts": watts, "utilisation": utilisation}
        for name, value in given.items():
            if value is not None and not (0 <= value < 1e9 and (name != "utilisation" or 0 < value <= 1)):
                allowed = "above 0, at most 1" if name == "utilisation" else "0 or more"
                raise ConfigError(f"{name}: must be {allowed} (got {value}).")
        return Costs(
            1.0 if price is None else price,
            WATTS[device.partition(":")[0]] if watts is None else watts,
            UTILISATION if utilisation is None else utilisation,
            tuple(name for name, value in given.items() if value is None),
        )

    def of_work(self, seconds: float) -> float:
        """Money for so long a piece of work that keeps the machine busy, such as training."""
        return seconds / 3600 * self.price_per_hour

    def energy_kwh(self, seconds: float) -> float:
        """Energy of so much computing."""
        return seconds / 3600 * self.watts / 1000

    def per_1000_requests(self, seconds_per_request: float) -> float:
        """Money for 1,000 requests: their computing, and the share of the paid time that waits for requests."""
        return self.of_work(1000 * seconds_per_request) / self.utilisation

    @property
    def stated(self) -> str:
        """The assumptions in a line."""

        def marked(name: str, text: str) -> str:
            return f"{text} (assumed)" if name in self.assumed else text

        return ", ".join(
            [
                marked("price", f"{self.price_per_hour:g} per machine hour"),
                marked("watts", f"{self.watts:g} W"),
                marked("utilisation", f"serving {self.utilisation:.0%} of the paid time"),
            ]
        )

    def to_json(self) -> dict[str, object]:
        """The figures, and the names of those that are assumed."""
        values = {"price_per_hour": self.price_per_hour, "watts": self.watts, "utilisation": self.utilisation}
        return values | {"assumed": list(self.assumed)}


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of an hour, watts and utilisation as far as they were given; the rest is assumed."""

    cost: float | None = None
    watts: float | None = None
    utilisation: float | None = None

    def __post_init__(self) -> None:
        self.on("cpu")  # refuses what can be no figure before anything is computed

    @staticmethod
    def of(cost: float | None, watts: float | None, utilisation: float | None) -> Prices | None:
        """None where nothing was given. Raises: ConfigError."""
        given = (cost, watts, utilisation)
        return Prices(*given) if any(value is not None for value in given) else None

    def on(self, device: str) -> Costs:
        """With round figures for a device in place of those that were not given."""
        return Costs.of(device, self.cost, self.watts, self.utilisation)


@dataclass(frozen=True, slots=True)
class Bill:
    """Time and bytes to train, keep and serve one model, and their cost."""

    name: str
    costs: Costs
    request_s: float | None
    """Seconds of a request where they are answered in batches; None without answers."""
    training_s: float | None
    """None where it was not trained here."""
    stored_bytes: int
    """Bytes to keep beside a base that is there anyway; all bytes of a complete model."""

    @property
    def per_1000(self) -> float | None:
        """Cost of 1,000 requests."""
        return None if self.request_s is None else self.costs.per_1000_requests(self.request_s)

    @property
    def once(self) -> float | None:
        """Cost of training."""
        return None if self.training_s is None else self.costs.of_work(self.training_s)

    @property
    def per_1000_kwh(self) -> float | None:
        """Energy of 1,000 requests."""
        return None if self.request_s is None else self.costs.energy_kwh(1000 * self.request_s)

    @property
    def once_kwh(self) -> float | None:
        """Energy of training."""
        return None if self.training_s is None else self.costs.energy_kwh(self.training_s)

    def to_json(self) -> dict[str, object]:
        """Bytes, seconds, cost and energy; null where not known."""
        return {
            "name": self.name, "stored_bytes": self.stored_bytes,
            "training_s": self.training_s, "cost_once": self.once, "energy_kwh_once": self.once_kwh,
            "request_s": self.request_s, "cost_per_1000_requests": self.per_1000,
            "energy_kwh_per_1000_requests": self.per_1000_kwh,
        }  # fmt: skip

    def cells(self) -> list[str]:
        """Under HEAD: name, what training costs, its energy, what is stored, 1,000 requests, their energy."""
        money = ["–" if value is None else money_shown(value) for value in (self.once, self.per_1000)]
        energy = ["–" if value is None else f"{value:.2g} kWh" for value in (self.once_kwh, self.per_1000_kwh)]
        return [self.name, money[0], energy[0], bytes_shown(self.stored_bytes), money[1], energy[1]]


HEAD: Final = ("", "training", "its energy", "stored", "1,000 requests", "their energy")
"""Head of a table of bills."""


def money_shown(amount: float) -> str:
    """`12.30`, `0.0041`, `0.0000031`: at least two significant digits."""
    if amount == 0 or amount >= 1:
        return f"{amount:,.2f}"
    digits = next(n for n in range(2, 16) if round(amount, n) >= 10 ** (1 - n) or n == 15)
    return f"{amount:.{digits}f}"


def bills_json(bills: Sequence[Bill]) -> dict[str, object] | None:
    """The prices and the bill of each model; None without bills."""
    return bills[0].costs.to_json() | {"models": [one.to_json() for one in bills]} if bills else None
