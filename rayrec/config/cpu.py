"""What this machine's CPU can do, where a setting leaves the choice to it."""

import re
from pathlib import Path

_FACTS = Path("/proc/cpuinfo")
_WITH_BF16 = {"avx512_bf16", "amx_bf16", "bf16"}  # x86 twice, then ARM


def has_bf16() -> bool:
    """It multiplies bf16 by instructions of its own; products of bf16 take several times as long as in fp32 where not.

    False also where the system does not say, as only Linux does.
    """
    if not _FACTS.exists():
        return False
    listed = re.search(r"^(?:flags|Features)\s*:(.*)$", _FACTS.read_text(encoding="utf-8"), re.MULTILINE)
    return listed is not None and not _WITH_BF16.isdisjoint(listed[1].split())
