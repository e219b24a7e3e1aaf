"""As much of the Hub as huggingface_hub's own client needs to make a repository, upload to it and load from it.

One user, "me", with one token. Files with the extensions that the Hub keeps in LFS go there; Xet is not spoken, so
clients need HF_HUB_DISABLE_XET. What the Hub answers was read from huggingface_hub 2.4.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import yaml

TOKEN = "hf_stand_in"
LFS_EXTENSIONS = (".safetensors", ".bin", ".pt", ".onnx", ".parquet", ".png")


@dataclass
class Repository:
    """`commits`: by hash, from the first to the last, the content of each file by its path. `branches`: to which some
    were made; all have the same files."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    lfs_paths: set[str] = field(default_factory=set)
    branches: set[str] = field(default_factory=set)

    @property
    def head(self) -> str:
        return list(self.commits)[-1]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[self.head]


class Refusal(Exception):
    """An answer other than 200: status, X-Error-Code and X-Error-Message."""

    def __init__(self, status: int, code: str = "", message: str = ""):
        super().__init__(status, code, message)
        self.status, self.code, self.message = status, code, message


class StandIn(ThreadingHTTPServer):
    """The server, on a free port of this machine, for as long as the context lasts. `url` is its HF_ENDPOINT."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}  # of LFS, by SHA-256
        self.broken: str | None = None  # requests that begin so, as in "PUT /lfs", fail
        self.role: str | None = None  # what the token may do, if it tells

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    """One request. Each route is a method whose arguments are the groups of its pattern."""

    server: StandIn
    protocol_version = "HTTP/1.1"
    REPO = r"([\w.-]+/[\w.-]+)"

    def log_message(self, *_):
        pass

    def do(self):
        """Find the route, and answer."""
        path = urlsplit(self.path).path
        self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        status, headers, answer = 200, {}, b""
        try:
            if self.server.broken and f"{self.command} {path}".startswith(self.server.broken):
                raise Refusal(500, message="out of order")
            for method, pattern, action in ROUTES:
                if self.command in method.split() and (match := re.fullmatch(pattern, path)):
                    answer = action(self, *match.groups())
                    break
            else:
                raise Refusal(404, message=f"the stand-in has no {self.command} {path}")
            if isinstance(answer, tuple):
                headers, answer = answer
        except Refusal as refusal:
            status, answer = refusal.status, {"error": refusal.message, "url": refusal.message}
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
        content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do

    # --- who asks -----------------------------------------------------------------------------------------------------

    def authorize(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, message="Invalid credentials in Authorization header")

    def repository(self, repo_id: str, write: bool = False) -> Repository:
        found = self.server.repositories.get(repo_id)
        if write or (found is not None and found.private):
            self.authorize()
        if found is None:
            raise Refusal(404, "RepoNotFound", "Repository not found")
        return found

    def whoami(self) -> dict[str, Any]:
        self.authorize()
        answer = {"type": "user", "name": "me", "orgs": [{"name": "mine"}]}
        return answer | ({"auth": {"accessToken": {"role": self.server.role}}} if self.server.role else {})

    # --- upload -------------------------------------------------------------------------------------------------------

    def create(self) -> dict[str, Any]:
        self.authorize()
        asked = json.loads(self.body)
        owner = asked["organization"] or "me"
        repo_id = f"{owner}/{asked['name']}"
        if owner != "me":
            raise Refusal(403, message=f'You don\'t have the rights to create a model under the namespace "{owner}"')
        if repo_id in self.server.repositories:
            raise Refusal(409, message=f"{self.server.url}/{repo_id}")
        self.server.repositories[repo_id] = Repository(private=asked.get("visibility") == "private")
        return {"url": f"{self.server.url}/{repo_id}"}

    def validate_yaml(self) -> dict[str, Any]:
        metadata = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
        if not metadata or not isinstance(yaml.safe_load(metadata[1]), dict):
            raise Refusal(400, message="no metadata")
        return {"errors": [], "warnings": []}

    def preupload(self, repo_id: str, _revision: str) -> dict[str, Any]:
        self.repository(repo_id, write=True)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(LFS_EXTENSIONS) else "regular" for path in paths}
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in modes.items()]}

    def lfs_batch(self, repo_id: str) -> dict[str, Any]:
        self.repository(repo_id, write=True)
        objects = json.loads(self.body)["objects"]
        for one in objects:
            if one["oid"] not in self.server.objects:
                one["actions"] = {"upload": {"href": f"{self.server.url}/lfs/{one['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str) -> bytes:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refusal(400, message="not the content of that hash")
        self.server.objects[oid] = self.body
        return b""

    def commit(self, repo_id: str, revision: str) -> dict[str, Any]:
        repository = self.repository(repo_id, write=True)
        repository.branches.add(revision)
        files = dict(repository.files)
        for line in self.body.splitlines():
            key, value = json.loads(line).values()
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
                repository.lfs_paths.add(value["path"])
            elif key == "deletedFile":
                del files[value["path"]]
            elif key != "header":
                raise Refusal(400, message=f"the stand-in has no {key}")
        oid = hashlib.sha1(self.body + repository.head.encode()).hexdigest()
        repository.commits[oid] = files
        return {"commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}", "commitOid": oid}

    # --- download -----------------------------------------------------------------------------------------------------

    def info(self, repo_id: str, revision: str | None = None) -> dict[str, Any]:
        repository = self.repository(repo_id)
        commit = self._commit(repository, revision or "main")
        siblings = [{"rfilename": path} for path in repository.commits[commit]]
        return {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings}

    def tree(self, repo_id: str, revision: str, folder: str | None = None) -> list[dict[str, Any]]:
        repository = self.repository(repo_id)
        files = repository.commits[self._commit(repository, revision)]
        inside = {path: data for path, data in files.items() if path.startswith(f"{folder}/" if folder else "")}
        if folder and not inside:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        return [{"type": "file", "path": path, "size": len(data), "oid": _etag(data)} for path, data in inside.items()]

    def resolve(self, repo_id: str, revision: str, path: str) -> tuple[dict[str, str], bytes]:
        repository = self.repository(repo_id)
        commit = self._commit(repository, revision)
        if path not in repository.commits[commit]:
            raise Refusal(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][path]
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}
        if path in repository.lfs_paths:
            headers |= {"X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Linked-Size": str(len(content))}
        return headers, content

    @staticmethod
    def _commit(repository: Repository, revision: str) -> str:
        if revision == "main" or revision in repository.branches:
            return repository.head
        if revision not in repository.commits:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return revision


def _etag(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()  # git's


REPO, REVISION = Handler.REPO, r"([^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate_yaml),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", Handler.preupload),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/([0-9a-f]{64})", Handler.lfs_put),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", Handler.commit),
    ("GET", rf"/api/models/{REPO}", Handler.info),
    ("GET", rf"/api/models/{REPO}/revision/{REVISION}", Handler.info),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(.+))?", Handler.tree),
    ("GET HEAD", rf"/{REPO}/resolve/{REVISION}/(.+)", Handler.resolve),
]
