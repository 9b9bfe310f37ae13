"""TLS of the API's listeners."""

from __future__ import annotations

import ssl
from typing import Any


class TellingContext(ssl.SSLContext):
    """Hands each new connection to another context, and tells a peer that is refused why.

    An event loop drops a connection whose handshake has failed together with the alert that OpenSSL has written for the peer, who then
    sees a connection that ends without a reason instead of "certificate revoked".
    """

    inner: ssl.SSLContext

    @classmethod
    def over(cls, inner: ssl.SSLContext) -> TellingContext:
        """Return one whose connections are those of `inner`, which may follow renewals by itself."""
        made = cls(inner.protocol)
        made.inner = inner
        return made

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Return a TLS object of `inner`."""
        return _Telling(self.inner.wrap_bio(*args, **kwargs))  # type: ignore[return-value]  # all that a loop asks of one


class _Telling:
    """A TLS object whose handshake does not fail at once on a certificate: it asks for more first, upon which the loop sends the alert.

    The peer speaks TLS then, and ends the connection once it has read why; one that does not meets the limit of a handshake.
    """

    def __init__(self, inner: ssl.SSLObject) -> None:
        self._inner = inner
        self._failed: ssl.SSLCertVerificationError | None = None

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        if self._failed is not None:
            raise self._failed
        try:
            self._inner.do_handshake()
        except ssl.SSLCertVerificationError as error:
            self._failed = error
            raise ssl.SSLWantReadError from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)
