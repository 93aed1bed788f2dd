"""A Hugging Face Hub on loopback, for the tests: the endpoints that the real client uses, and faults on demand.

One port speaks the API of the Hub, a second one stores and serves the bytes of large files, as the Hub does: a request
there is allowed by the signature in its address and must not carry a token.

    hub = Hub({"hf_ada": ["ada", "team"]})     # token -> the user, and the organisations that the user may write to
    hub.server.start()
    ...                                        # clients, in processes with HF_ENDPOINT=hub.url
    hub.files("ada/model")                     # {"config.json": b"...", ...}
    hub.server.stop()
"""

import base64
import hashlib
import json
import re
import time
from dataclasses import dataclass, field
from urllib.parse import parse_qs, quote, unquote

import yaml

from hub_http import Call, Reply, Server

LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "cc0-1.0", "other"}
TASKS = {"unconditional-image-generation", "image-classification", "text-generation", "image-to-image"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
# What the Hub never stores inside of git itself.
LARGE = re.compile(r".*\.(safetensors|bin|pt|ckpt)")
REPO = r"/api/(models|datasets|spaces)/([^/]+/[^/]+)"
PAGE = r"/((?:datasets/|spaces/)?)([^/]+/[^/]+)"


class HubError(Exception):
    """An answer that is no success, with the error code by which the client finds the exception to raise."""

    def __init__(self, status: int, message: str, code: str | None = None, body: dict | None = None, **headers: str):
        super().__init__(message)
        named = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.reply = Reply({"error": message} | (body or {}), status, named | headers)


@dataclass(frozen=True)
class File:
    """A file of a commit. Its bytes are in `Hub.blobs` under its `oid`: SHA-256 if large, as git names it otherwise."""

    oid: str
    size: int
    is_large: bool


@dataclass(frozen=True)
class Commit:
    oid: str
    parent: str | None
    files: dict[str, File]
    title: str
    user: str


@dataclass
class Repository:
    kind: str
    name: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    # As git names them: refs/heads/main, refs/tags/v1, refs/pr/1.
    refs: dict[str, str] = field(default_factory=dict)

    def find(self, revision: str) -> Commit:
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        found = [commit for oid, commit in self.commits.items() if len(revision) >= 7 and oid.startswith(revision)]
        if not found:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found[0]


class Hub:
    """What a Hub knows. `server.requests` are all that came, `server.faults` come yet, `blobs` are all stored bytes."""

    def __init__(self, users: dict[str, list[str]]):
        self.users = users
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.blobs: dict[str, bytes] = {}
        # With a folder here, clients store large files there through hf_xet, and tell only their hashes.
        self.xet_store: str | None = None
        self.xet_hashes: dict[str, str] = {}
        self.signature = hashlib.sha256(str(time.time_ns()).encode()).hexdigest()
        self.server = Server({"api": self.answer, "blobs": self.answer_blob})
        self.url, self.blobs_url = self.server.url("api"), self.server.url("blobs")

    def files(self, name: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """The contents of a repository."""
        commit = self.repositories[kind, name].find(revision)
        return {path: self.blobs[file.oid] for path, file in commit.files.items()}

    def commits(self, name: str, kind: str = "models") -> list[Commit]:
        """The commits of a repository, the first one made by the Hub itself when it was created."""
        return list(self.repositories[kind, name].commits.values())

    def add_commit(self, repository: Repository, ref: str, files: dict[str, File], title: str, user: str) -> Commit:
        """A commit on top of a ref."""
        parent = repository.refs.get(ref)
        content = json.dumps([parent, title, user, len(repository.commits), sorted((p, files[p].oid) for p in files)])
        commit = Commit(hashlib.sha1(content.encode()).hexdigest(), parent, files, title, user)
        repository.commits[commit.oid] = commit
        repository.refs[ref] = commit.oid
        return commit

    def put(self, name: str, contents: dict[str, bytes], ref: str = "refs/heads/main", private: bool = False) -> Commit:
        """A commit made without a client, of files added to a repository that is made if missing."""
        with self.server.lock:
            if ("models", name) not in self.repositories:
                self._create("models", name, private)
            repository = self.repositories["models", name]
            files = dict(repository.find(ref).files) | {path: self.store(path, c) for path, c in contents.items()}
            return self.add_commit(repository, ref, files, "Put", name.split("/")[0])

    def store(self, path: str, content: bytes) -> File:
        """The entry of a file whose bytes are kept."""
        is_large = LARGE.fullmatch(path) is not None
        oid = hashlib.sha256(content).hexdigest() if is_large else git_oid(content)
        self.blobs[oid] = content
        return File(oid, len(content), is_large)

    def answer(self, call: Call) -> Reply:
        """The answer to a request at the API."""
        try:
            return self._route(call)
        except HubError as error:
            return error.reply

    def _route(self, call: Call) -> Reply:
        for method, pattern, respond in ROUTES:
            match = re.fullmatch(pattern, call.path)
            if match and (call.method == method or (call.method, method) == ("HEAD", "GET")):
                return respond(self, call, *map(unquote, match.groups()))
        return Reply({"error": "Not found"}, 404)

    def user(self, call: Call) -> list[str]:
        """The namespaces that the sender of a request may write to, the own one first; none without a token."""
        header = call.headers.get("authorization")
        if header is None:
            return []
        if header.removeprefix("Bearer ") not in self.users:
            raise HubError(401, "Invalid credentials in Authorization header")
        return self.users[header.removeprefix("Bearer ")]

    def repository(self, call: Call, kind: str, name: str, write: bool = False) -> Repository:
        """A repository that the sender may see, and change if `write`. The Hub hides that a private one exists."""
        namespaces, repository = self.user(call), self.repositories.get((kind, name))
        owns = name.split("/")[0] in namespaces
        if repository is None or (repository.private and not owns):
            raise HubError(404 if namespaces else 401, "Repository not found", "RepoNotFound")
        if write and not owns:
            raise HubError(403 if namespaces else 401, f"You don't have write access to {name}")
        return repository

    def welcome(self, _call: Call) -> Reply:
        return Reply(b"A Hub for tests")

    def who_am_i(self, call: Call) -> Reply:
        namespaces = self.user(call)
        if not namespaces:
            raise HubError(401, "Invalid username or password.")
        return Reply({"name": namespaces[0], "type": "user", "orgs": [{"name": name} for name in namespaces[1:]]})

    def create(self, call: Call) -> Reply:
        wanted, namespaces = call.json(), self.user(call)
        if not namespaces:
            raise HubError(401, "Invalid username or password.")
        kind = f"{wanted.get('type') or 'model'}s"
        name = f"{wanted.get('organization') or namespaces[0]}/{wanted['name']}"
        url = {"url": f"{self.url}/{'' if kind == 'models' else f'{kind}/'}{name}", "name": name}
        if name.split("/")[0] not in namespaces:
            raise HubError(403, f"You don't have the rights to create a {kind[:-1]} under this namespace")
        if (kind, name) in self.repositories:
            raise HubError(409, f"You already created this {kind[:-1]} repo: {name}", body=url)
        self._create(kind, name, wanted.get("visibility") == "private")
        return Reply(url)

    def _create(self, kind: str, name: str, private: bool) -> None:
        repository = self.repositories[kind, name] = Repository(kind, name, private)
        files = {".gitattributes": self.store(".gitattributes", b"*.safetensors filter=lfs -text\n")}
        self.add_commit(repository, "refs/heads/main", files, "initial commit", name.split("/")[0])

    def info(self, call: Call, kind: str, name: str, revision: str = "main") -> Reply:
        repository = self.repository(call, kind, name)
        commit = repository.find(revision)
        card = commit.files.get("README.md")
        data = front_matter(self.blobs[card.oid].decode()) if card else {}
        tags = [*data.get("tags", []), *([data["library_name"]] if "library_name" in data else [])]
        siblings = [_described(path, file) | {"rfilename": path} for path, file in sorted(commit.files.items())]
        about = {"id": name, "modelId": name, "sha": commit.oid, "private": repository.private, "siblings": siblings}
        about |= {"tags": tags, "cardData": data, "lastModified": "2026-01-01T00:00:00.000Z", "downloads": 0}
        return Reply(about | {key: data[key] for key in ("pipeline_tag", "library_name") if key in data})

    def tree(self, call: Call, kind: str, name: str, revision: str, folder: str = "") -> Reply:
        commit = self.repository(call, kind, name).find(revision)
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict] = {}
        for path, file in sorted(commit.files.items()):
            if not path.startswith(prefix):
                continue
            parents = path.removeprefix(prefix).split("/")[:-1]
            for depth in range(1, len(parents) + 1):
                parent = prefix + "/".join(parents[:depth])
                entries.setdefault(parent, {"type": "directory", "path": parent, "oid": git_oid(parent.encode())})
            entries[path] = _described(path, file)
        if call.query.get("recursive") != ["true"]:
            entries = {path: entry for path, entry in entries.items() if "/" not in path.removeprefix(prefix)}
        if folder and not entries:
            raise HubError(404, f"{folder} does not exist", "EntryNotFound", **{"X-Repo-Commit": commit.oid})
        return Reply(list(entries.values()))

    def paths_info(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        commit = self.repository(call, kind, name).find(revision)
        paths = parse_qs(call.body.decode())["paths"]
        return Reply([_described(path, commit.files[path]) for path in paths if path in commit.files])

    def list_refs(self, call: Call, kind: str, name: str) -> Reply:
        found: dict[str, list] = {"heads": [], "tags": [], "pr": []}
        for ref, oid in self.repository(call, kind, name).refs.items():
            short = ref.split("/", 2)[2]
            found[ref.split("/")[1]].append({"name": short, "ref": ref, "targetCommit": oid})
        return Reply({"branches": found["heads"], "converts": [], "tags": found["tags"], "pullRequests": found["pr"]})

    def list_commits(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        repository = self.repository(call, kind, name)
        commit, listed = repository.find(revision), []
        while commit is not None:
            about = {"id": commit.oid, "title": commit.title, "message": "", "date": "2026-01-01T00:00:00.000Z"}
            listed.append(about | {"authors": [{"user": commit.user}]})
            commit = repository.commits.get(commit.parent or "")
        return Reply(listed)

    def add_branch(self, call: Call, kind: str, name: str, branch: str) -> Reply:
        start = (call.json() if call.body else {}).get("startingPoint") or "main"
        return self._add_ref(self.repository(call, kind, name, write=True), f"refs/heads/{branch}", start)

    def add_tag(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        return self._add_ref(self.repository(call, kind, name, True), f"refs/tags/{call.json()['tag']}", revision)

    def _add_ref(self, repository: Repository, ref: str, start: str) -> Reply:
        if ref in repository.refs:
            raise HubError(409, f"{ref} already exists")
        repository.refs[ref] = repository.find(start).oid
        return Reply({})

    def preupload(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        commit = self.repository(call, kind, name, write="create_pr" not in call.query).find(revision)
        found = []
        for path in [file["path"] for file in call.json()["files"]]:
            mode = "lfs" if LARGE.fullmatch(path) else "regular"
            about = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            found.append(about | ({"oid": commit.files[path].oid} if path in commit.files else {}))
        return Reply({"files": found, "commitOid": commit.oid})

    def batch(self, call: Call, prefix: str, name: str) -> Reply:
        self.repository(call, prefix.strip("/") or "models", name)
        if not self.user(call):
            raise HubError(401, "Invalid username or password.")
        objects = []
        for wanted in call.json()["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            upload = {"href": f"{self.blobs_url}/{oid}?size={size}&signature={self.signature}"}
            verify = {"href": f"{self.url}/{prefix}{name}.git/info/lfs/verify"}
            objects.append({"oid": oid, "size": size} | self._unless_stored(oid, {"upload": upload, "verify": verify}))
        return Reply({"transfer": "basic", "objects": objects})

    def _unless_stored(self, oid: str, actions: dict) -> dict:
        return {} if oid in self.blobs else {"actions": actions}

    def verify(self, call: Call, _prefix: str, _name: str) -> Reply:
        wanted = call.json()
        if len(self.blobs.get(wanted["oid"], b"")) != wanted["size"]:
            raise HubError(422, f"{wanted['oid']} has not the declared size of {wanted['size']} bytes")
        return Reply({})

    def commit(self, call: Call, kind: str, name: str, revision: str) -> Reply:
        creates_pr = "create_pr" in call.query
        repository = self.repository(call, kind, name, write=not creates_pr)
        if not (namespaces := self.user(call)):
            raise HubError(401, "Invalid username or password.")
        lines = [json.loads(line) for line in call.body.splitlines()]
        header = lines[0]["value"]
        base = repository.find(revision)
        if not creates_pr and base.oid[:7] != header.get("parentCommit", base.oid)[:7]:
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(base.files)
        for line in lines[1:]:
            self._apply(line["key"], line["value"], files)
        ref = revision if revision in repository.refs else f"refs/heads/{revision}"
        if creates_pr:
            ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repository.refs)}"
            repository.refs[ref] = base.oid
        made = self.add_commit(repository, ref, files, header["summary"], namespaces[0])
        page = f"{self.url}/{'' if kind == 'models' else f'{kind}/'}{name}"
        pull = {"pullRequestUrl": f"{page}/discussions/{ref.split('/')[-1]}"} if creates_pr else {}
        return Reply({"success": True, "commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}"} | pull)

    def _apply(self, key: str, value: dict, files: dict[str, File]) -> None:
        path = value["path"]
        if key == "file":
            files[path] = self.store(path, base64.b64decode(value["content"]))
        elif key == "lfsFile":
            if value["oid"] not in self.blobs and value["oid"] not in self.xet_hashes:
                raise HubError(400, f"The LFS pointer of {path} points to a file that was never uploaded")
            files[path] = File(value["oid"], value["size"], True)
        elif key == "deletedFile":
            del files[path]
        else:
            raise HubError(400, f"{key} is not spoken here")

    def validate_yaml(self, call: Call) -> Reply:
        errors = metadata_errors(front_matter(call.json()["content"]), call.json().get("repoType"))
        return Reply({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)

    def resolve(self, call: Call, prefix: str, name: str, revision: str, path: str) -> Reply:
        commit = self.repository(call, prefix.strip("/") or "models", name).find(revision)
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise HubError(404, "Entry not found", "EntryNotFound", **headers)
        file = commit.files[path]
        if not file.is_large:
            return Reply(self.blobs[file.oid], headers=headers | {"ETag": f'"{file.oid}"'})
        headers |= {"X-Linked-Etag": f'"{file.oid}"', "X-Linked-Size": str(file.size)}
        if file.oid in self.xet_hashes:
            auth = f"{self.url}/api/{prefix or 'models/'}{name}/xet-read-token/{commit.oid}"
            headers |= {"X-Xet-Hash": self.xet_hashes[file.oid], "Link": f'<{auth}>; rel="xet-auth"'}
        # The name lets a test ask for a fault in this file alone.
        address = f"{self.blobs_url}/{file.oid}?signature={self.signature}&name={quote(f'{name}/{path}', safe='/')}"
        return Reply(status=302, headers=headers | {"Location": address})

    def xet_token(self, call: Call, kind: str, name: str, _use: str, _revision: str) -> Reply:
        self.repository(call, kind, name)
        if self.xet_store is None:
            raise HubError(404, "This Hub has no Xet store")
        cas, expires = f"local://{self.xet_store}", int(time.time()) + 3600
        headers = {"X-Xet-Cas-Url": cas, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expires)}
        return Reply({"casUrl": cas, "accessToken": "xet", "exp": expires}, headers=headers)

    def answer_blob(self, call: Call) -> Reply:
        """The answer at the port of large files."""
        oid = call.path.strip("/")
        if call.query.get("signature") != [self.signature]:
            return Reply(b"The signature is wrong", 403)
        if call.method == "PUT":
            if hashlib.sha256(call.body).hexdigest() != oid or len(call.body) != int(call.query["size"][0]):
                return Reply(b"The content has not the declared size and SHA-256", 400)
            self.blobs[oid] = call.body
            return Reply()
        return Reply(self.blobs[oid], headers={"ETag": f'"{oid}"'}) if oid in self.blobs else Reply(status=404)


def _described(path: str, file: File) -> dict:
    about = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    large = {"oid": file.oid, "sha256": file.oid, "size": file.size, "pointerSize": 130}
    return about | ({"lfs": large} if file.is_large else {})


ROUTES = [
    ("GET", r"/?", Hub.welcome),
    ("GET", r"/api/whoami-v2", Hub.who_am_i),
    ("POST", r"/api/repos/create", Hub.create),
    ("POST", r"/api/validate-yaml", Hub.validate_yaml),
    ("GET", REPO, Hub.info),
    ("GET", rf"{REPO}/revision/([^/]+)", Hub.info),
    ("GET", rf"{REPO}/tree/([^/]+)/?", Hub.tree),
    ("GET", rf"{REPO}/tree/([^/]+)/(.+?)/?", Hub.tree),
    ("POST", rf"{REPO}/paths-info/([^/]+)", Hub.paths_info),
    ("GET", rf"{REPO}/refs", Hub.list_refs),
    ("GET", rf"{REPO}/commits/([^/]+)", Hub.list_commits),
    ("POST", rf"{REPO}/branch/([^/]+)", Hub.add_branch),
    ("POST", rf"{REPO}/tag/([^/]+)", Hub.add_tag),
    ("POST", rf"{REPO}/preupload/([^/]+)", Hub.preupload),
    ("POST", rf"{REPO}/commit/([^/]+)", Hub.commit),
    ("GET", rf"{REPO}/xet-(read|write)-token/([^/]+)", Hub.xet_token),
    ("POST", rf"{PAGE}\.git/info/lfs/objects/batch", Hub.batch),
    ("POST", rf"{PAGE}\.git/info/lfs/verify", Hub.verify),
    ("GET", rf"{PAGE}/resolve/([^/]+)/(.+)", Hub.resolve),
]


def git_oid(content: bytes) -> str:
    """The name that git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def front_matter(text: str) -> dict:
    """The metadata of a card."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    return yaml.safe_load(match[1]) if match else {}


def metadata_errors(data: dict, kind: str | None) -> list[str]:
    """What the Hub would complain about, each with the name of the field."""
    allowed = {"license": LICENSES, "pipeline_tag": TASKS}
    if kind == "space":
        allowed = {"license": LICENSES, "colorFrom": COLORS, "colorTo": COLORS, "sdk": {"gradio"}}
    errors = [f'"{key}" must be one of {sorted(a)}' for key, a in allowed.items() if key in data and data[key] not in a]
    for key in ("tags", "datasets", "metrics"):
        if key in data and not all(isinstance(entry, str) for entry in data[key]):
            errors.append(f'"{key}" must be a list of strings')
    for entry in data.get("model-index", []):
        errors += [] if entry.get("name") else ['"model-index[].name" is required']
        for result in entry["results"]:
            if {"type"} - result["task"].keys() or {"type", "name"} - result["dataset"].keys():
                errors.append('"model-index[].results[]" needs task.type, dataset.type and dataset.name')
            if not all("type" in metric and "value" in metric for metric in result["metrics"]):
                errors.append('"model-index[].results[].metrics[]" needs type and value')
    return errors
