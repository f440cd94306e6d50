"""NodeConnections: connections to the nodes that the database names, with one token and one trust for all."""

from __future__ import annotations

import ssl

from orchestrator.errors import UntrustedServerError
from orchestrator.remote.connection import Connection, trust


class NodeConnections:
    """Makes them. The caller closes them.

    A node writes its own address into the database. Where the nodes are known to have certificates, an address
    without one gets no token.

    Args:
        token: None: the nodes need none.
        verify: see ``trust``. A named authority says that the nodes have certificates.
        only_tls: whether they are known to have some for another reason.
    """

    def __init__(self, token: str | None, verify: ssl.SSLContext | str | bool, *, only_tls: bool = False) -> None:
        self._token = token
        self._verify = verify
        self._only_tls = token is not None and (only_tls or not isinstance(verify, bool))

    def to(self, url: str) -> Connection:
        """Return a connection to a node.

        Raises:
            UntrustedServerError: the address has no TLS, and the other nodes have.
            SettingsError: it is no address; see also ``trust``.
        """
        if url.lower().startswith("https:"):
            self._verify = trust(self._verify)  # one for all nodes: to make it takes 30 ms
        elif self._only_tls:
            raise UntrustedServerError(
                f"{url[:200]} has no TLS, and the nodes of this cluster have certificates: the token was not sent.",
                remedy="Look who has written this address: `cellblock cluster status`.",
            )
        return Connection(url, self._token, None, self._verify)
