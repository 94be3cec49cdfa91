"""A bucket on the loopback address, for tests and to try things by hand: `python tests/bucket_server.py PORT`.

gcp-storage-emulator in memory, with the header x-goog-generation of an object's version, which TensorStore reads.
"""

import logging
import sys
import time

from gcp_storage_emulator import server
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers import objects

BUCKET = "cmjax-test"


download = objects.download


def download_with_generation(request, response, storage, *args, **kwargs):
    download(request, response, storage, *args, **kwargs)
    try:
        known = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    except NotFound:
        return
    response["x-goog-generation"] = known["generation"]


def with_generation(handlers):
    return {
        method: download_with_generation if handler is download else handler for method, handler in handlers.items()
    }


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    objects.download = download_with_generation
    server.HANDLERS = tuple((pattern, with_generation(handlers)) for pattern, handlers in server.HANDLERS)
    with server.create_server("localhost", int(sys.argv[1]), in_memory=True, default_bucket=BUCKET):
        print("ready", flush=True)
        while True:
            time.sleep(3600)
