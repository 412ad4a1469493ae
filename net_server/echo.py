"""The echo server (RFC 862): what comes to UDP port 7 goes back where it came from."""

from __future__ import annotations

from typing import Final

from core.errors import Refused
from core.userlib.server import Server

from .network import Network

ECHO_PORT: Final = 7
_ANSWERING: Final = frozenset((7, 13, 17, 19, 37))
"""Ports whose servers answer whatever they get (echo, daytime, quote, chargen, time).

A datagram with such a source port, forged or not, would set off an exchange without end between two
servers; so none is answered.
"""
_SIZE: Final = 65_536


class EchoServer(Server):
    """Answers datagrams to port 7, over the network granted as `net`."""

    async def start(self) -> None:
        """Bind the port: when the server is ready, it answers."""
        self._socket = await self._bind()

    async def run(self) -> None:
        """Answer until cancelled."""
        socket = self._socket
        while True:
            datagram, data = await socket.udp_receive(_SIZE)
            if datagram.errno or datagram.port in _ANSWERING:
                continue
            try:
                await socket.udp_send(datagram.source, datagram.port, data)
            except Refused as refusal:
                self.task.log(f"echo to {datagram.source.hex('.')}: {refusal}")

    async def _bind(self) -> Network:
        """Return the socket: the one that an earlier incarnation kept, or a new one."""
        right = self.task.kept_rights().get("socket")
        if right is None:
            network = self.task.connect(Network, "net")
            # not for broadcasts: every host of the link would answer one
            _, right = await network.udp_bind(ECHO_PORT, False)
            self.task.keep_right("socket", right)
        return self.task.connect(Network, right)
