"""Models that have an address, hf://owner/name@revision of a model hub or cmjax://name of cmjax's own: each is fetched
once, and becomes a run's folder in the user's cache."""

import re
from functools import lru_cache
from pathlib import Path

from cmjax.runs.releases import release_files
from cmjax.runs.workdir import RECORD
from cmjax.system.files import user_cache


def fetch_run(address: str) -> Path:
    """Gives the run's folder of a model with an address.

    Raises: ConfigError in one line where there is none, or it cannot be fetched or kept.
    """
    return _fetched(address, user_cache())


@lru_cache(maxsize=64)  # a mode asks for its run several times, and a hub is asked once
def _fetched(address: str, cache: Path) -> Path:
    folder, key = fetch_exported(address)
    name = re.sub(r"[^\w.]+", "-", address.partition("@")[0].replace("://", "-"))
    place = cache / "models" / f"{name}-{key[:12]}"
    if not (place / RECORD).is_file():
        # here, not above: what was kept before needs no readers of files
        from cmjax.runs.exported import keep_exported

        keep_exported(folder, place, address=address, version=key[:12])
    return place


def fetch_exported(address: str) -> tuple[Path, str]:
    """Gives the folder of an exported model with an address, and the key of its content.

    Raises: ConfigError in one line where there is none, or it cannot be fetched.
    """
    if address.startswith("cmjax://"):
        return release_files(address)
    from cmjax.runs.hub import from_hub  # here, not above: it imports what speaks to servers

    return from_hub(address)
