"""How long a test waits for what has to come: no bound that is tested, but one for a hang.

A machine may be busy with other things, so that nothing that a test claims hangs on how long something took.
"""

from __future__ import annotations

PATIENCE_SECONDS = 120.0
