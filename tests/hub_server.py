"""A model hub on the loopback address: the part of its protocol that fetching a repository takes."""

import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

REVISIONS = ("main", "v1")


@contextlib.contextmanager
def serving(repositories, published=None):
    """Serves folders, {"owner/name": folder}, as repositories with the revisions main and v1, and the folder
    `published` below /files. Gives the address and the list of the requested paths."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = self.path.partition("?")[0]
            asked.append(path)
            if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(revision|tree)/([^/]+)", path):
                self.answer_about(*match.groups())
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                self.answer_file(*match.groups())
            elif path.startswith("/files/") and published and (file := published / path[7:]).is_file():
                self.answer(200, file.read_bytes())
            else:
                self.answer(200 if path == "/" else 404)

        def answer_about(self, name, what, revision):
            if not self.is_known(name, revision):
                return
            files = sorted(path for path in repositories[name].rglob("*") if path.is_file())
            names = [str(path.relative_to(repositories[name])) for path in files]
            tree = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": oid(path.read_bytes())}
                for name, path in zip(names, files, strict=True)
            ]
            about = {"id": name, "sha": commit(name), "siblings": [{"rfilename": name} for name in names]}
            self.answer(
                200, json.dumps(about if what == "revision" else tree).encode(), {"Content-Type": "application/json"}
            )

        def answer_file(self, name, revision, file):
            if not self.is_known(name, revision):
                return
            path = repositories[name] / file
            if not path.is_file():
                self.answer(404, headers={"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit(name)})
                return
            content = path.read_bytes()
            self.answer(200, content, {"ETag": f'"{oid(content)}"', "X-Repo-Commit": commit(name)})

        def is_known(self, name, revision):
            if name not in repositories:
                self.answer(404, headers={"X-Error-Code": "RepoNotFound"})
                return False
            if revision not in (*REVISIONS, commit(name)):
                self.answer(404, headers={"X-Error-Code": "RevisionNotFound"})
                return False
            return True

        def answer(self, code, content=b"", headers=None):
            self.send_response(code)
            for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def commit(name):
    return hashlib.sha1(name.encode()).hexdigest()


def oid(content):
    return hashlib.sha1(content).hexdigest()
