"""python -m mivra.bot: one bot in a process of its own, as an executor starts it."""

from __future__ import annotations

import logging
import os
import sys

from mivra.bot.channel import Channel
from mivra.bot.process import Exit, run
from mivra.config import load
from mivra.errors import ConfigError


def main() -> int:
    """Run the bot that the environment names; errors go to the executor and, for the log, to stderr."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        settings = load(os.environ)
    except ConfigError as error:
        Channel().send("error", message=str(error))
        return Exit.REFUSED
    return run(settings, os.environ)


if __name__ == "__main__":
    sys.exit(main())
