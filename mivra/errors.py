"""Every error that this program raises on purpose.

MivraError
├── ConfigError              a setting is missing or wrong
├── StoreError               the database
│   ├── StoreUnavailable     not reachable, or the connection was lost
│   ├── StoreTimeout         a statement or the wait for a connection took too long
│   ├── PermissionDenied     the role may not do this
│   ├── Conflict             somebody else was faster (compare-and-set, unique)
│   ├── InvalidData          a check refused the values
│   └── MigrationError       the schema is not what this release needs
├── CacheError               a cached value cannot be had in time
├── EmbeddedError            the embedded Postgres or Valkey
├── ControlError             a command to a bot
├── BrokerError              an order or a result
└── TradeImportError         a file of trades

A class's docstring is its default message.
"""

from __future__ import annotations


class MivraError(Exception):
    """Something went wrong."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())


class ConfigError(MivraError):
    """A setting is missing or wrong."""


class StoreError(MivraError):
    """The database refused the call."""

    def __init__(self, message: str = "", code: str = "") -> None:
        super().__init__(message)
        self.code = code
        """SQLSTATE or PostgREST code, empty when there is none."""


class StoreUnavailable(StoreError):
    """The database cannot be reached."""


class StoreTimeout(StoreError):
    """The database did not answer in time."""


class PermissionDenied(StoreError):
    """The database does not allow this to the current role."""


class Conflict(StoreError):
    """Somebody else changed this first."""


class InvalidData(StoreError):
    """The database refused the values."""


class MigrationError(StoreError):
    """The database's schema does not fit this release; run: python -m mivra migrate"""


class CacheError(MivraError):
    """The figure is not in the cache and could not be read in time."""


class EmbeddedError(MivraError):
    """The embedded servers cannot be started."""


class ControlError(MivraError):
    """The command was not accepted."""


class BrokerError(MivraError):
    """The broker refused the order."""


class TradeImportError(MivraError):
    """The file cannot be imported."""
