"""Time as money and energy."""

from __future__ import annotations

import pytest

from inlay.errors import ConfigError
from inlay.evaluation.costs import HEAD, Bill, Costs


def test_a_bill_is_time_by_price_and_energy_by_power() -> None:
    bill = Bill("adapter", Costs(price_per_hour=3.6, watts=100.0, utilisation=0.25), 0.5, 1800.0, 2_000_000)
    assert bill.once == pytest.approx(1.8)
    assert bill.once_kwh == pytest.approx(0.05)
    assert bill.per_1000 == pytest.approx(0.5 * 1000 / 3600 * 3.6 / 0.25)  # what waits is paid too
    assert bill.per_1000_kwh == pytest.approx(500 / 3600 * 0.1)
    assert len(bill.cells()) == len(HEAD)


def test_what_was_not_seen_has_no_price() -> None:
    bill = Bill("base", Costs(1.0, 1.0), None, None, 10)
    assert (bill.once, bill.per_1000, bill.once_kwh, bill.per_1000_kwh) == (None,) * 4
    assert bill.cells()[1:3] == ["–", "–"]


def test_what_nobody_gave_is_said_to_be_assumed() -> None:
    costs = Costs.of("cuda:0", 2.0, None, None)
    assert costs.stated == "2 per machine hour, 400 W (assumed), serving 50% of the paid time (assumed)"
    for wrong in ({"price": -1.0}, {"watts": float("nan")}, {"utilisation": 0.0}):
        with pytest.raises(ConfigError, match=f"{next(iter(wrong))}: must be"):
            Costs.of("cpu", **({"price": None, "watts": None, "utilisation": None} | wrong))
