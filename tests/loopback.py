"""A Hub on this machine, in memory: what `push_to_hub` and `from_pretrained` ask of huggingface.co.

Standard library only: `conftest.py` sets `environment(...)` before anything of Hugging Face is imported.
"""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

USERS = {"hf_loopback_user": "user", "hf_loopback_guest": "guest"}  # token -> name


class Repository:
    """Branches and commits: a revision maps a path to its content."""

    def __init__(self, *, private: bool):
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        digest = hashlib.sha1(f"{len(self.commits)}{branch}".encode())
        for name in sorted(files):
            digest.update(name.encode() + files[name])
        self.branches[branch] = digest.hexdigest()
        self.commits[digest.hexdigest()] = files
        return digest.hexdigest()

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "LoopbackHub"

    def log_message(self, *args):
        """Nothing on the terminal."""

    def answer(self, content: object, status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data if self.server.drop != "download" else data[: len(data) // 2])
        if self.server.drop == "download" and self.command == "GET":
            self.close_connection = True

    def refuse(self, status: int, code: str) -> None:
        self.answer({"error": code}, status, X_Error_Code=code, X_Error_Message=code)

    def handle_request(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append(f"{self.command} {path}")
        if self.server.drop and self.server.drop in path:
            self.close_connection = True
            self.connection.close()
            return
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = USERS.get(token)
        if token and user is None:
            self.answer({"error": "Invalid credentials in Authorization header"}, 401)
        elif path == "/api/whoami-v2":
            self.answer({"name": user, "type": "user", "orgs": []}, 200 if user else 401)
        elif path == "/api/validate-yaml":
            self.answer({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self.create(json.loads(body), user)
        elif found := re.fullmatch(r"/api/(?:models/)?((?:datasets/)?[^/]+/[^/]+)(?:/([\w-]+))?(?:/(.*))?", path):
            self.api(*found.groups(), user, body)
        elif found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(*found.groups(), user)
        else:
            self.refuse(404, "RepoNotFound")

    do_GET = do_HEAD = do_POST = handle_request

    def create(self, body: dict, user: str | None) -> None:
        name = f"{body.get('organization') or user}/{body['name']}"
        if user is None or name.split("/")[0] != user:
            self.refuse(403 if user else 401, "Forbidden")
        elif name in self.server.repositories:
            self.answer({"url": f"{self.server.url}/{name}"}, 409)
        else:
            self.server.repositories[name] = Repository(private=body.get("visibility") == "private")
            self.answer({"url": f"{self.server.url}/{name}"})

    def visible(self, name: str, user: str | None) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and name.split("/")[0] != user):
            self.refuse(404 if user else 401, "RepoNotFound")
            return None
        return repository

    def api(self, name: str, what: str | None, rest: str | None, user: str | None, body: bytes) -> None:
        repository = self.visible(name, user)
        if repository is None:
            return
        if self.command == "POST" and name.split("/")[0] != user:
            self.refuse(403, "Forbidden")
        elif what == "branch":
            repository.branches.setdefault(rest or "", repository.branches["main"])
            self.answer({})
        elif what == "refs":
            branches = [
                {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repository.branches.items()
            ]
            self.answer({"branches": branches, "tags": [], "converts": []})
        elif what == "preupload":
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        elif what == "commit":
            self.commit(repository, rest or "main", name, body)
        else:
            revision = (rest or "main").split("/")[0]
            if revision not in {**repository.branches, **repository.commits}:
                return self.refuse(404, "RevisionNotFound")
            files, sha = repository.files(revision), repository.branches.get(revision, revision)
            if what == "tree":
                folder = "".join(f"{part}/" for part in (rest or "").split("/")[1:])
                inside = {path: content for path, content in files.items() if path.startswith(folder)}
                self.answer([{"type": "file", "path": p, "size": len(c), "oid": oid(c)} for p, c in inside.items()])
            else:
                siblings = [{"rfilename": path} for path in files]
                self.answer({"id": name, "sha": sha, "private": repository.private, "siblings": siblings, "tags": []})

    def commit(self, repository: Repository, branch: str, name: str, body: bytes) -> None:
        files = dict(repository.files(branch))
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del files[value["path"]]
        sha = repository.commit(branch, files)
        self.answer({"commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"})

    def resolve(self, name: str, revision: str, path: str, user: str | None) -> None:
        repository = self.visible(name, user)
        if repository is None:
            return
        if revision not in {**repository.branches, **repository.commits}:
            self.refuse(404, "RevisionNotFound")
            return
        sha = repository.branches.get(revision, revision)
        content = repository.files(revision).get(path)
        if content is None:
            self.answer({}, 404, X_Error_Code="EntryNotFound", X_Repo_Commit=sha)
        else:
            self.answer(content, ETag=f'"{oid(content)}"', X_Repo_Commit=sha)


def oid(content: bytes) -> str:
    """git's name of a blob."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub(ThreadingHTTPServer):
    """The address is taken at once, connections are refused until `start`.

    Attributes:
        repositories: `user/name` to `Repository`.
        requests: what was asked, "GET /path".
        drop: part of a path: such a request is cut off unanswered. "download": bodies are cut off in the middle.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.drop = ""

    def start(self) -> None:
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *args):
        """A client that goes away is no news."""

    def environment(self, home: str) -> dict[str, str]:
        """For this process and those it starts: this Hub and no other, files under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": home,
            "HF_TOKEN": next(iter(USERS)),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
