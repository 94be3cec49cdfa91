"""Writes TensorBoard's files. tensorboardX's SummaryWriter is not used: a full disk kills its thread for good."""

import contextlib
import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image
from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import RecordWriter

EVENT, SESSION, SUMMARY = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary  # pyright: ignore
FLUSH_SECONDS = 30.0


class EventFiles:
    """Writes scalars and images into files `events.out.tfevents.*` of a folder. Values that a full disk refuses are
    dropped; they are in `metrics.jsonl`."""

    def __init__(self, folder: str | os.PathLike[str], *, resume_step: int):
        self._folder, self._resume_step = Path(folder), resume_step
        self._file: RecordWriter | None = None
        # the first write may come at once, at whatever time the clock starts
        self._flushed, self._failed = 0.0, -FLUSH_SECONDS

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._add(step, [SUMMARY.Value(tag=name, simple_value=value) for name, value in values.items()])

    def write_images(self, step: int, images: Mapping[str, bytes]) -> None:
        """images: name -> the bytes of a PNG."""
        values = []
        for name, data in images.items():
            width, height = Image.open(io.BytesIO(data)).size
            # 3 stands for RGB
            png = SUMMARY.Image(height=height, width=width, colorspace=3, encoded_image_string=data)
            values.append(SUMMARY.Value(tag=name, image=png))
        self._add(step, values)

    def _add(self, step: int, values: list[Any]) -> None:
        if time.monotonic() - self._failed < FLUSH_SECONDS:
            return
        try:
            self._file = self._file or self._begin()
            self._file.write(_event(step=step, summary=SUMMARY(value=values)))
            if time.monotonic() - self._flushed > FLUSH_SECONDS:
                self._file.flush()
                self._flushed = time.monotonic()
        except OSError:
            # what a full disk cut short is the end of that file
            self.close()
            self._failed = time.monotonic()

    def close(self) -> None:
        """Close the file. A later value starts another one, since nothing behind a torn record is read."""
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()

    def _begin(self) -> RecordWriter:
        now = time.time_ns()
        name = f"events.out.tfevents.{now // 10**9}.{socket.gethostname()}.{os.getpid()}.{now}"
        file = RecordWriter(str(self._folder / name))
        # the record that such a file must begin with
        file.write(_event(file_version="brain.Event:2"))
        # TensorBoard then hides the values of later steps in older files
        if self._resume_step:
            file.write(_event(step=self._resume_step, session_log=SESSION(status=SESSION.START)))
        return file


def _event(**fields: Any) -> bytes:
    return EVENT(wall_time=time.time(), **fields).SerializeToString()
