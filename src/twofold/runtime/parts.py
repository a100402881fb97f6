"""What every instance in a keeper shares."""

from __future__ import annotations

from twofold.record import dataclass
from twofold.runtime.deposit import Vault
from twofold.runtime.door import Door
from twofold.runtime.journal import Journal
from twofold.runtime.loop import Loop
from twofold.runtime.sandbox import Host


@dataclass(frozen=True, kw_only=True)
class Parts:
    loop: Loop
    host: Host
    door: Door
    vault: Vault
    journal: Journal
