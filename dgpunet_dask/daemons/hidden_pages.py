"""Dask's own pages answer under a secret path, and must not tell it: `/` is sent on to it, and `/sitemap.json` lists it."""

from __future__ import annotations

from typing import Any, Final

from tornado.web import HTTPError, RequestHandler

_TELLING: Final = ("/", "/sitemap.json")


class Nothing(RequestHandler):
    """Answers 404 to everything. Dask passes by tornado's own `ErrorHandler` and asks its dashboard instead."""

    def prepare(self) -> None:
        """Refuse."""
        raise HTTPError(404)


def hide_prefix(server: Any) -> None:
    """Let a scheduler or worker tell nobody where its pages are. `server` has its HTTP application by now."""
    server.http_application.add_handlers(".*", [(path, Nothing) for path in _TELLING])
    rules = server.http_application.default_router.rules
    rules.insert(0, rules.pop(-2))  # before Dask's own; the last rule is the application's for everything else
