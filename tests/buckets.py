"""The fixture `bucket`: a bucket on the loopback address, and the environment of processes that use it."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

BUCKET = "cmjax-test"


@dataclass(frozen=True)
class Bucket:
    url: str
    environment: dict[str, str]


@pytest.fixture(scope="session")  # clients remember the address of the first
def bucket():
    pytest.importorskip("gcp_storage_emulator")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, str(Path(__file__).with_name("bucket_server.py")), str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert server.stdout.readline() == "ready\n"
    address = f"http://localhost:{port}"
    environment = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "FSSPEC_GCS_TOKEN": "anon",
        "FSSPEC_GCS_ENDPOINT_URL": address,
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",
    }
    try:
        yield Bucket(f"gs://{BUCKET}", {**os.environ, **environment})
    finally:
        server.kill()
        server.communicate()
