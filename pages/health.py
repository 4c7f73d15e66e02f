"""Health: is everything well, and if not, what is the next step?"""

from __future__ import annotations

from mivra.web import health_view

health_view.checks()
