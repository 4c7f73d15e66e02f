"""A wrong config is one sentence that names its key."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from mivra.bot.config import BotConfig
from mivra.errors import ControlError

GOOD: dict[str, Any] = {"strategy": "balanced", "asset": "EURUSD", "amount": 20}


def test_what_is_left_out_has_the_documented_default() -> None:
    assert BotConfig.parse(GOOD) == BotConfig(
        "balanced", "EURUSD", Decimal(20), Decimal("0.85"), expiration_seconds=10, account_type="demo", safety_stop=10
    )


@pytest.mark.parametrize(
    ("given", "meant"), [(1, "1"), (12.3, "12.3"), ("12.30", "12.30"), (1000, "1000"), (0.1 + 5, "5.1")]
)
def test_an_amount_is_the_decimal_that_was_written(given: object, meant: str) -> None:
    assert BotConfig.parse({**GOOD, "amount": given}).amount == Decimal(meant)


def test_a_config_survives_its_json() -> None:
    config = BotConfig.parse({**GOOD, "amount": 12.5, "safety_stop": 3})
    assert BotConfig.parse(config.as_json()) == config
    assert config.as_json()["amount"] == "12.5"


@pytest.mark.parametrize("key", GOOD)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ControlError, match=f"lacks {key}$"):
        BotConfig.parse({k: v for k, v in GOOD.items() if k != key})


def test_an_unknown_key_is_named() -> None:
    with pytest.raises(ControlError, match='unknown key "ammount"'):
        BotConfig.parse({**GOOD, "ammount": 3})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("strategy", "yolo"),
        ("strategy", None),
        ("strategy", ["balanced"]),
        ("asset", ""),
        ("asset", " EURUSD"),
        ("asset", "x" * 65),
        ("asset", 5),
        ("amount", 0.99),
        ("amount", 1000.01),
        ("amount", "many"),
        ("amount", "nan"),
        ("amount", True),
        ("amount", None),
        ("amount", {"a": 1}),
        ("amount", "1.005"),
        ("payout_rate", 0),
        ("payout_rate", 11),
        ("payout_rate", "inf"),
        ("expiration_seconds", 4),
        ("expiration_seconds", 301),
        ("expiration_seconds", 10.5),
        ("expiration_seconds", "10"),
        ("expiration_seconds", True),
        ("account_type", "real"),
        ("safety_stop", 0),
        ("safety_stop", 11),
    ],
)
def test_a_wrong_value_is_one_sentence_that_names_its_key(key: str, value: object) -> None:
    with pytest.raises(ControlError, match=f"^{key} is ") as caught:
        BotConfig.parse({**GOOD, key: value})
    assert "\n" not in str(caught.value)
