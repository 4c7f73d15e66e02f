"""What an operator tells a bot: the config of its row in bot_control, checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from mivra.bot.strategy import strategies
from mivra.bot.trade import CENT
from mivra.errors import ControlError

MAX_STAKE = Decimal(1000)
"""Currency units: what the platform lets one trade risk."""


@dataclass(frozen=True, slots=True)
class BotConfig:
    strategy: str
    """A name of mivra.bot.strategy.strategies."""
    asset: str
    amount: Decimal
    """Stake of each trade in currency units, 1 to 1000, in whole cents."""
    payout_rate: Decimal = Decimal("0.85")
    """Gain of a win per unit of stake, 0.01 to 10."""
    expiration_seconds: int = 10
    """5 to 300."""
    account_type: str = "demo"
    """The paper broker has no other."""
    safety_stop: int = 10
    """Losses in a row, 1 to 10, after which the bot pauses itself."""

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> BotConfig:
        """A config from its JSON object; ControlError names the key that is wrong and says what to write."""
        known = {f.name: f.default for f in fields(cls)}
        for key in mapping:
            if key not in known:
                raise ControlError(f'The config has an unknown key "{key}"; known are {", ".join(known)}')
        for key, default in known.items():
            if default is MISSING and key not in mapping:
                raise ControlError(f"The config lacks {key}")
        return cls(**{key: _checked(key, value) for key, value in mapping.items()})

    def as_json(self) -> dict[str, Any]:
        """The JSON object that parse reads; money as text."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {key: str(value) if isinstance(value, Decimal) else value for key, value in values.items()}


def _checked(key: str, value: object) -> Any:
    match key:
        case "strategy":
            return _choice(key, value, tuple(strategies))
        case "account_type":
            return _choice(key, value, ("demo",))
        case "asset":
            return _asset(value)
        case "amount":
            return _decimal(key, value, Decimal(1), MAX_STAKE, in_cents=True)
        case "payout_rate":
            return _decimal(key, value, CENT, Decimal(10))
        case "expiration_seconds":
            return _integer(key, value, 5, 300)
        case _:
            return _integer(key, value, 1, 10)


def _choice(key: str, value: object, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ControlError(f"{key} is {value!r}; choose {' or '.join(choices)}")
    return str(value)


def _asset(value: object) -> str:
    if not (isinstance(value, str) and value == value.strip() and 1 <= len(value) <= 64):  # noqa: PLR2004 - the table's limit
        raise ControlError(f"asset is {value!r}; write a name of 1 to 64 characters such as EURUSD")
    return value


def _decimal(key: str, value: object, low: Decimal, high: Decimal, *, in_cents: bool = False) -> Decimal:
    try:
        # Through text: a float 12.3 means 12.3, not the nearest binary fraction; a bool is no number.
        number = Decimal("nan" if isinstance(value, bool) else str(value))
    except InvalidOperation:
        number = Decimal("nan")
    if not (number.is_finite() and low <= number <= high):
        raise ControlError(f"{key} is {value!r}; write a number from {low} to {high}")
    if in_cents and number != number.quantize(CENT):
        raise ControlError(f"{key} is {value!r}; write at most two decimals")
    return number


def _integer(key: str, value: object, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ControlError(f"{key} is {value!r}; write a whole number from {low} to {high}")
    return value
