"""The servers of a native mount, as a system description has them: added to it, not written in it.

They are servers like the others from then on: the zygote has their code loaded, the supervisor
restarts the front end, and the commands find both.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Final

import msgspec

from core.abi import ALL_OPERATIONS
from core.kernel.tasks import Watch
from core.system.description import (
    SILENCE_S,
    DescriptionError,
    Grant,
    ServerDescription,
    SystemDescription,
)
from core.system.supervisor import Policy
from core.userlib.confine import Confinement
from core.userlib.server import Server
from mount.stream_directories import grants_for

from .attachment import AttachmentServer
from .server import FrontEndServer

ATTACHMENT: Final = "mount"
FRONT_END: Final = "front-end"
FILE_SERVER: Final = "fs"


def with_native_mount(
    description: SystemDescription,
    path: Path,
    *,
    program: str = "",
    placement: str,
    allow_other: bool | None,
    streams: dict[str, str] | None = None,
) -> SystemDescription:
    """Return the description with the servers of a native mount.

    Args:
        path: the mount point.
        program: the front end as `module:Class`; "": the one that ships.
        placement: of the front end: "process" or "colocated".
        allow_other: let other users see the mount; None: if this is root.
        streams: servers of streams, by their names in the root.

    Raises:
        DescriptionError: it has no file server, or a server of one of the names.
    """
    servers = description.servers
    if FILE_SERVER not in servers:
        raise DescriptionError(f"[mount]: there is no server {FILE_SERVER!r} to mount")
    for name in (ATTACHMENT, FRONT_END):
        if name in servers:
            raise DescriptionError(f"[server.{name}]: a server of a native mount has this name")
    attachment = _server(
        ATTACHMENT,
        AttachmentServer,
        "colocated",
        options={"path": str(path), "allow_other": allow_other},
    )
    front_end = _server(
        FRONT_END,
        _load(program),
        placement,
        grants=(FILE_SERVER, ATTACHMENT),
        options={"streams": list(streams or {})},
        needed=True,
    )
    front_end.grants.update(grants_for(streams or {}))
    return msgspec.structs.replace(
        description, servers={**servers, ATTACHMENT: attachment, FRONT_END: front_end}
    )


def _load(program: str) -> type[Server]:
    if not program:
        return FrontEndServer
    module, _, name = program.partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except Exception as error:
        raise DescriptionError(f"[mount]: {program} cannot be loaded: {error}") from error
    if not (isinstance(cls, type) and issubclass(cls, FrontEndServer)):
        raise DescriptionError(f"[mount]: {program} is no front end")
    return cls


def _server(
    name: str,
    cls: type[Server],
    placement: str,
    *,
    grants: tuple[str, ...] = (),
    options: dict[str, object] | None = None,
    needed: bool = False,
) -> ServerDescription:
    """Return the description of one server.

    Args:
        needed: the system ends when it is beyond mending: whoever uses the mount would wait.
    """
    policy = Policy(escalation="end-system" if needed else "give-up")
    return ServerDescription(
        name,
        f"{cls.__module__}:{cls.__qualname__}",
        cls,
        placement,
        policy.restart,
        policy.intensity,
        policy.period_s,
        {server: Grant(server, ALL_OPERATIONS) for server in grants},
        options or {},
        privileged=False,
        user_namespace=False,
        policy=policy,
        watch=Watch(SILENCE_S),
        confinement=Confinement() if placement == "process" else None,
    )
