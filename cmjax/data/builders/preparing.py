"""Downloads and prepares a data set with TFDS; errors say what to do."""

import contextlib
import http.client
import io
import logging
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core.download import resource

from cmjax.data.base import DataError

log = logging.getLogger(__name__)

DEADLINE_SECONDS = 8.0
"""The longest wait for a server's first answer. TFDS itself would try again for minutes."""


def prepare(builder_class: Any, data_dir: Path) -> None:
    """Downloads what `builder_class` needs and write it as array_record to data_dir/<name>/<version>.

    Files in data_dir/downloads/manual are used in place of downloads; their checksums must be right as well.

    Raises: DataError naming each file that is missing or wrong, where it comes from and where to put it.
    """
    log.info("preparing %s in %s", builder_class.name, data_dir)
    tfds.disable_progress_bar()  # it would write to the terminal beside the caller's own
    _require_files(builder_class, data_dir)
    builder = None
    try:
        builder = builder_class(data_dir=data_dir, file_format="array_record")
        # TFDS would look for a prepared copy in Google's bucket first
        config = tfds.download.DownloadConfig(try_download_gcs=False, force_checksums_validation=True)
        with contextlib.redirect_stdout(io.StringIO()):  # nor its own announcements
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:
        if builder is None or not (builder.data_path / "dataset_info.json").exists():
            message = f"{builder_class.name} could not be prepared in {data_dir}: {error}"
            if "wrong checksum" in str(error):
                message += (
                    "\nThe file is damaged or not the official one. Delete it and run again, or put the right one into "
                    f"{data_dir / 'downloads' / 'manual'}: {', '.join(builder_class.URLS)}"
                )
            raise DataError(message) from error
        # Another process of the run on this machine finished the same work first.


def _require_files(builder_class: Any, data_dir: Path) -> None:
    # TFDS looks here for a file before it downloads it.
    infos, folder = builder_class.url_infos, data_dir / "downloads" / "manual"
    manual = {url: folder / infos[url].filename for url in builder_class.URLS}
    for url, path in manual.items():
        cached = resource.get_dl_fname(url, infos[url].checksum)
        if path.is_file() or any((data_dir / "downloads").rglob(cached)):
            continue
        trouble = why_unreachable(url, deadline_seconds=DEADLINE_SECONDS)
        if trouble is not None:
            places = [f"  {each} -> {place}" for each, place in manual.items()]
            raise DataError(
                f"{builder_class.name} is not in {data_dir} and cannot be downloaded: {url}: {trouble}.\n"
                "Connect to the network, or download elsewhere and put here:\n" + "\n".join(places)
            )


def why_unreachable(url: str, *, deadline_seconds: float) -> str | None:
    """Says why a server does not answer for `url` within the deadline; None where it does."""
    answers: list[str | None] = []

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=deadline_seconds):
                answers.append(None)
        except (OSError, http.client.HTTPException) as error:
            answers.append(str(error))

    # A thread, for looking up the name of a host knows no timeout.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(deadline_seconds)
    return answers[0] if answers else f"no answer in {deadline_seconds:g} s"
