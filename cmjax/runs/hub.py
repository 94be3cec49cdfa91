"""Fetches a model of a model hub, hf://owner/name@revision, into the cache of huggingface_hub."""

import os
import re
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from cmjax.config.fields import ConfigError
from cmjax.runs.exported import AUTOENCODER, MODEL, is_of_cmjax
from cmjax.runs.workdir import RECORD
from cmjax.system.libraries import require

HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
SERVER, SECONDS = "https://huggingface.co", 10
FILES = [RECORD, MODEL, f"{AUTOENCODER}/*"]


def from_hub(address: str) -> tuple[Path, str]:
    """Fetches a repository's files into the cache of huggingface_hub. Returns: their folder, and the commit."""
    if (match := HUB.fullmatch(address)) is None:
        raise ConfigError(f"{address}: must be hf://owner/name or hf://owner/name@revision")
    require("huggingface_hub", address)
    import huggingface_hub as hub

    repository: dict[str, Any] = {"repo_id": match[1], "revision": match[2], "endpoint": os.environ.get("HF_ENDPOINT")}
    # the library would ask again for half a minute
    repository["local_files_only"] = not _is_reached(os.environ.get("HF_ENDPOINT", SERVER))
    try:
        # first the small file: other libraries' weights may be large
        config = Path(hub.hf_hub_download(filename=RECORD, **repository))
        if not is_of_cmjax(config):
            raise ConfigError(f"{address}: is no cmjax model: its {RECORD} is of another library")
        folder = Path(hub.snapshot_download(allow_patterns=FILES, **repository))
    except ConfigError:
        raise
    except Exception as error:  # of several libraries, by what the server or the network does
        raise ConfigError(f"{address}: {_why(error, match[2])}") from error
    if not (folder / MODEL).is_file():
        raise ConfigError(f"{address}: is no cmjax model: it has no {MODEL}")
    return folder, folder.name


def _is_reached(server: str) -> bool:
    """Says whether a server answers at all."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    try:
        urllib.request.urlopen(urllib.request.Request(server, method="HEAD"), timeout=SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def _why(error: Exception, revision: str | None) -> str:
    """Says in one line why a hub gave no files."""
    from huggingface_hub import errors

    server = os.environ.get("HF_ENDPOINT", SERVER)
    known: list[tuple[Any, str]] = [
        (errors.GatedRepoError, f"{server} asks for its terms to be accepted, and for a login: hf auth login"),
        (errors.RepositoryNotFoundError, f"{server} has no such model, or it is private: hf auth login"),
        (errors.RevisionNotFoundError, f"it has no revision {revision}"),
        (errors.LocalEntryNotFoundError, f"{server} cannot be reached, and nothing of it was fetched before"),
        (errors.EntryNotFoundError, f"is no cmjax model: it has no {RECORD}"),
        (errors.HFValidationError, "is no name of a model: must be hf://owner/name"),
    ]
    said = next((text for kind, text in known if isinstance(error, kind)), None)
    return said or f"cannot be fetched from {server}: {' '.join(str(error).split())[:200] or type(error).__name__}"
