"""Every viewer, one query: in-process copy, Redis, and one loader for all threads and all processes."""

from mivra.cache.cached import CachedFunction, cached
from mivra.cache.region import Read, Region

__all__ = ["CachedFunction", "Read", "Region", "cached"]
