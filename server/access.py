"""What decides over access to a served room, opened and closed together: keys, counts, the audit log, and the commands' key of this run.

Made by `server/app.py` where a room is served; asked by the guard, `server/auth.py`.
"""

from __future__ import annotations

import secrets
from typing import Any

from rag.seal import Seal
from rag.settings import Settings
from server import audit, keys, quotas
from server.audit import Audit
from server.keys import Keys
from server.quotas import Meter
from server.scopes import Caller


class Access:
    """Opens the files in the data directory. Raises `DatabaseBroken`: without them nobody may be let in."""

    def __init__(self, settings: Settings, seal: Seal | None = None) -> None:
        folder = settings.data_dir
        self.command = secrets.token_urlsafe(32)
        """What a command of this machine shows to get in; it ends with this process."""
        self.keys = Keys(folder / keys.FILE, seal=seal)
        try:
            self.meter = Meter(folder / quotas.FILE, settings.plans, settings.limits, keep_days=settings.server.usage_days, seal=seal)
            try:
                self.audit = Audit(folder / audit.FILE, keep_days=settings.server.audit_days, seal=seal)
            except BaseException:
                self.meter.close()
                raise
        except BaseException:
            self.keys.close()
            raise
        self.meter.start()

    def note(self, caller: Caller, act: str, target: str = "", **details: Any) -> None:
        """Append an act to the audit log. Blocks for milliseconds."""
        self.audit.note(caller, act, target, **details)

    def close(self) -> None:
        """Write what is counted, and close the files."""
        self.meter.close()
        self.audit.close()
        self.keys.close()
