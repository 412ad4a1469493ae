"""A mount on a host that cannot say again what was not answered: what is before Linux 6.9."""

from __future__ import annotations

from typing_extensions import override

from mount.native.attachment import AttachmentServer
from mount.native.handshake import wishes
from mount.native.protocol.flags import Init
from mount.native.protocol.negotiation import Wishes


class OldHostAttachment(AttachmentServer):
    """Does not ask for HAS_RESEND, so that it is not agreed upon."""

    @override
    def wishes(self) -> Wishes:
        return Wishes(features=wishes().features & ~Init.HAS_RESEND)
