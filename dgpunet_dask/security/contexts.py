"""TLS contexts that follow their files: each new connection is made under the certificate and the revocation list in force.

Dask, tornado and `http.client` take one `ssl.SSLContext` and keep it for good. Changing such a context in place is no way out: a
new certificate is there for a moment without its key (and the interpreter lets other threads run in that moment), an authority
cannot be taken out again, and of two revocation lists of the same second the older one wins. So what they get is a `LiveContext`,
which hands every new connection to an ordinary context; that one is never changed but replaced as a whole.
"""

from __future__ import annotations

import ssl
from typing import Any, Literal

Clients = Literal["required", "optional"]


class LiveContext(ssl.SSLContext):
    """Hands each new connection to `current`.

    Its own flags say the same, for those who read them; it holds no key and no authority, so whoever gets around `current` can
    neither serve nor trust anyone.
    """

    current: ssl.SSLContext

    @classmethod
    def over(cls, current: ssl.SSLContext) -> LiveContext:
        """Return one that begins with `current`."""
        live = cls(current.protocol)
        live.check_hostname = current.check_hostname
        live.verify_mode = current.verify_mode
        live.minimum_version = current.minimum_version
        live.current = current
        return live

    def wrap_socket(self, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        """Return a TLS socket under the context in force."""
        return self.current.wrap_socket(*args, **kwargs)

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        """Return a TLS object under the context in force."""
        return self.current.wrap_bio(*args, **kwargs)


def bare_context(protocol: int) -> ssl.SSLContext:
    """Return a context that trusts nobody yet, with what holds for every connection of a cluster.

    TLS 1.3 alone: there a session can only be taken up again with a ticket, none is given, and so every connection checks the
    peer's certificate anew, which is what makes a revocation bite.
    """
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    if protocol == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    return context


def server_context(pem: str, ca: str, crl: str, clients: Clients) -> ssl.SSLContext:
    """Return a context that serves with the certificate and key in `pem` (file names all three)."""
    context = bare_context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED if clients == "required" else ssl.CERT_OPTIONAL
    return _filled(context, pem, ca, crl)


def client_context(pem: str, ca: str, crl: str) -> ssl.SSLContext:
    """Return a context that connects with the certificate and key in `pem`, to servers with the right name or address only."""
    context = bare_context(ssl.PROTOCOL_TLS_CLIENT)  # it checks names and certificates by itself
    return _filled(context, pem, ca, crl)


def _filled(context: ssl.SSLContext, pem: str, ca: str, crl: str) -> ssl.SSLContext:
    context.load_cert_chain(pem)
    context.load_verify_locations(cafile=ca)
    context.load_verify_locations(cafile=crl)
    context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF  # without a list nobody is let in
    return context
