"""What an operator tells a bot: the config of its row in bot_control, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any

import msgspec

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
    drain_seconds: int = 20
    """Seconds, 1 to 600, that a stop waits for open trades; its executor heeds it."""

    @classmethod
    def parse(cls, mapping: Mapping[str, Any]) -> BotConfig:
        """A config from its JSON object; ControlError names the key that is wrong and says what to write."""
        for key in mapping:
            if key not in _CHECKS:
                raise ControlError(f'The config has an unknown key "{key}"; known are {", ".join(_CHECKS)}')
        for field in fields(cls):
            if field.default is MISSING and field.name not in mapping:
                raise ControlError(f"The config lacks {field.name}")
        return cls(**{key: _checked(key, value) for key, value in mapping.items()})

    def as_json(self) -> dict[str, Any]:
        """The JSON object that parse reads; money as text."""
        return dict(msgspec.to_builtins(self))


def _checked(key: str, value: object) -> Any:
    try:
        return _CHECKS[key](value)
    except ValueError as error:
        raise ControlError(f"{key} is {value!r}; {error}") from error


def _choice(choices: tuple[str, ...], value: object) -> str:
    if value not in choices:
        raise ValueError(f"choose {' or '.join(choices)}")
    return str(value)


def _asset(value: object) -> str:
    if not (isinstance(value, str) and value == value.strip() and 1 <= len(value) <= 64):  # noqa: PLR2004 - the table's limit
        raise ValueError("write a name of 1 to 64 characters such as EURUSD")
    return value


def _amount(value: object) -> Decimal:
    number = _decimal(Decimal(1), MAX_STAKE, value)
    if number != number.quantize(CENT):
        raise ValueError("write at most two decimals")
    return number


def _decimal(low: Decimal, high: Decimal, value: object) -> Decimal:
    try:
        # Through text: a float 12.3 means 12.3, not the nearest binary fraction; True is no number.
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("nan")
    if not (number.is_finite() and low <= number <= high):
        raise ValueError(f"write a number from {low} to {high}")
    return number


def _integer(low: int, high: int, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"write a whole number from {low} to {high}")
    return value


_CHECKS: Mapping[str, Callable[[object], Any]] = {
    "strategy": partial(_choice, tuple(strategies)),
    "asset": _asset,
    "amount": _amount,
    "payout_rate": partial(_decimal, CENT, Decimal(10)),
    "expiration_seconds": partial(_integer, 5, 300),
    "account_type": partial(_choice, ("demo",)),
    "safety_stop": partial(_integer, 1, 10),
    "drain_seconds": partial(_integer, 1, 600),
}
