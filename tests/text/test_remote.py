"""Sources behind URLs: a loopback server that serves, refuses and breaks off; S3; credentials."""

from __future__ import annotations

import base64
import gzip
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import pytest

from reptrain.errors import StoreError, TextError
from reptrain.store import verify
from reptrain.text.remote import without_credentials
from reptrain.text.sources import expand_sources
from reptrain.tokenization import tokenize

FilesOf = Callable[[Path], dict[str, bytes]]


class Server(ThreadingHTTPServer):
    """Serves what is put into ``files``; ``broken`` names are cut in the middle, ``closed`` ones give 403."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.closed: set[str] = set()
        self.broken: set[str] = set()
        self.secret = ""
        self.sizes = True
        self.gets: list[str] = []

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        server, name = self.server, self.path.lstrip("/").partition("?")[0]
        content = server.files.get(name)
        allowed = not server.secret or self.headers["Authorization"] == server.secret
        status = 404 if content is None else 403 if name in server.closed or not allowed else 200
        self.close_connection = True
        self.send_response(status)
        if status == 200 and content is not None:
            if body:
                server.gets.append(name)
            if server.sizes:
                self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content)}"')
        else:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if body and status == 200 and content is not None:
            self.wfile.write(content[: len(content) // 2] if name in server.broken else content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def put_corpus(server: Server, corpus: Path) -> list[str]:
    """The corpus as two files; their URLs."""
    lines = corpus.read_bytes().split(b"\n")
    server.files["data/a.jsonl"] = b"\n".join(lines[:100]) + b"\n"
    server.files["data/b.jsonl.gz"] = gzip.compress(b"\n".join(lines[100:]))
    return [server.url("data/a.jsonl"), server.url("data/b.jsonl.gz")]


def local_copies(server: Server, folder: Path) -> list[Path]:
    """The files of the server on disk: which documents are held out depends on their files."""
    copies = [folder / Path(name).name for name in sorted(server.files)]
    for copy, name in zip(copies, sorted(server.files), strict=True):
        copy.write_bytes(server.files[name])
    return copies


def test_tokenize_fetches_each_url_once(corpus: Path, model: Path, tmp_path: Path, server: Server) -> None:
    urls = put_corpus(server, corpus)
    stages: list[tuple[str, int, int]] = []
    manifest = tokenize(urls, tmp_path / "s", tokenizer=model, progress=lambda *step: stages.append(step))
    assert (
        manifest.fingerprint
        == tokenize(local_copies(server, tmp_path), tmp_path / "local", tokenizer=model).fingerprint
    )
    assert sorted(server.gets) == ["data/a.jsonl", "data/b.jsonl.gz"]
    assert [(item.name, item.url) for item in manifest.inputs] == [
        ("a.jsonl", urls[0]),
        ("b.jsonl.gz", urls[1]),
    ]
    total = sum(map(len, server.files.values()))
    fetched = [step for step in stages if step[0] == "fetch"]
    assert fetched[0] == ("fetch", 0, total) and fetched[-1] == ("fetch", total, total)
    assert not (tmp_path / "s" / ".work").exists()
    again = tokenize(urls, tmp_path / "s", tokenizer=model)
    assert again == manifest and len(server.gets) == 2
    server.files["data/a.jsonl"] = server.files["data/a.jsonl"].replace(b"epoch", b"cpohe")
    with pytest.raises(StoreError, match="sources with other content"):
        tokenize(urls, tmp_path / "s", tokenizer=model)


@pytest.mark.parametrize("how", ["closed", "broken"])
def test_tokenize_refuses_a_url_that_fails_and_keeps_fetched_copies(
    corpus: Path, model: Path, tmp_path: Path, server: Server, how: str
) -> None:
    urls, out = put_corpus(server, corpus), tmp_path / "s"
    getattr(server, how).add("data/b.jsonl.gz")
    got = "HTTP status 403 Forbidden" if how == "closed" else "ClientPayloadError"
    with pytest.raises(TextError, match=f"must be downloaded completely, but got {got}") as caught:
        tokenize(urls, out, tokenizer=model)
    assert f"source {urls[1]}: " in str(caught.value) and "\n" not in str(caught.value)
    assert not (out / "manifest.json").exists() and not list(out.glob("*.arrow"))
    assert not list(out.glob(".work/fetched/.*"))
    getattr(server, how).clear()
    manifest = tokenize(urls, out, tokenizer=model)
    assert server.gets.count("data/a.jsonl") == 1
    assert (
        manifest.fingerprint
        == tokenize(local_copies(server, tmp_path), tmp_path / "local", tokenizer=model).fingerprint
    )


def test_tokenize_with_other_options_does_not_fetch_again(
    corpus: Path, model: Path, tmp_path: Path, server: Server
) -> None:
    urls, out = put_corpus(server, corpus), tmp_path / "s"
    with pytest.raises(TextError, match="'body'"):
        tokenize(urls, out, tokenizer=model, text_field="body")
    tokenize(urls, out, tokenizer=model)
    assert sorted(server.gets) == ["data/a.jsonl", "data/b.jsonl.gz"]


def test_tokenize_names_the_url_and_line_of_a_bad_document(
    model: Path, tmp_path: Path, server: Server
) -> None:
    server.files["a.jsonl"] = b'{"text": "a"}\n{}\n'
    with pytest.raises(TextError, match=rf"source {server.url('a.jsonl')}:2: "):
        tokenize([server.url("a.jsonl")], tmp_path / "s", tokenizer=model)


def test_tokenize_of_a_url_without_a_size(corpus: Path, model: Path, tmp_path: Path, server: Server) -> None:
    urls = put_corpus(server, corpus)
    server.sizes = False
    manifest = tokenize(urls, tmp_path / "s", tokenizer=model)
    assert [item.bytes for item in manifest.inputs] == [len(content) for content in server.files.values()]
    assert tokenize(urls, tmp_path / "s", tokenizer=model) == manifest


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "must be downloaded completely, but got HTTP status 404"),
        ("a.pdf", r"must end in \.txt"),
        ("empty.jsonl", "must hold text, but got 0 bytes"),
    ],
)
def test_expand_sources_refuses_urls_that_hold_no_text(server: Server, name: str, message: str) -> None:
    server.files |= {"a.pdf": b"%PDF", "empty.jsonl": b""}
    with pytest.raises(TextError, match=message) as caught:
        expand_sources([server.url(name)])
    assert server.url(name) in str(caught.value)


def test_credentials_never_leave_the_command(
    corpus: Path, model: Path, tmp_path: Path, server: Server, files_of: FilesOf
) -> None:
    put_corpus(server, corpus)
    server.secret = "Basic " + base64.b64encode(b"me:pass%word").decode()
    url = server.url("data/a.jsonl?X-Signature=s1gn").replace("127", "me:pass%25word@127")
    manifest = tokenize([url], tmp_path / "s", tokenizer=model)
    assert manifest.inputs[0].url == server.url("data/a.jsonl")
    assert manifest.inputs[0].name == "a.jsonl"
    content = b"".join(files_of(tmp_path / "s").values())
    assert b"s1gn" not in content and b"pass%" not in content
    other = url.replace("s1gn", "another")
    assert tokenize([other], tmp_path / "s", tokenizer=model) == manifest
    for wrong in (url.replace("pass", "past"), url.replace("a.jsonl", "none.jsonl")):
        with pytest.raises(TextError) as caught:
            tokenize([wrong], tmp_path / "s2", tokenizer=model)
        assert "s1gn" not in str(caught.value) and "word" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "url"),
    [
        ("https://me:a@b@host:1/x.jsonl?q=1#f", "https://host:1/x.jsonl"),
        ("https://host/x@y.jsonl", "https://host/x@y.jsonl"),
        ("s3://bucket/a*.jsonl", "s3://bucket/a*.jsonl"),
    ],
)
def test_without_credentials_keeps_the_place(address: str, url: str) -> None:
    assert without_credentials(address) == url


def test_tokenize_takes_folders_and_globs_of_a_remote_file_system(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    memory = fsspec.filesystem("memory")
    lines = corpus.read_bytes().split(b"\n")
    for index, part in enumerate((lines[:50], lines[50:120], lines[120:])):
        memory.pipe(f"/reptrain/data/{index}.jsonl", b"\n".join(part))
    memory.pipe("/reptrain/data/README.md", b"about")
    memory.pipe("/reptrain/data/notes.bin", b"?")
    try:
        expected = tokenize([corpus], tmp_path / "local", tokenizer=model)
        found = tokenize(["memory://reptrain/data/*.jsonl"], tmp_path / "glob", tokenizer=model)
        assert found.fingerprint == expected.fingerprint
        assert [item.name for item in found.inputs] == [f"data/{index}.jsonl" for index in range(3)]
        assert [source.name for source in found.sources] == ["data"]
        with pytest.raises(TextError, match=r"got notes\.bin beside 3"):
            tokenize(["memory://reptrain/data"], tmp_path / "folder", tokenizer=model)
        memory.rm("/reptrain/data/notes.bin")
        folder = tokenize(["memory://reptrain/data"], tmp_path / "folder", tokenizer=model)
        assert folder.inputs == found.inputs and folder.inputs[0].url == "memory://reptrain/data/0.jsonl"
        with pytest.raises(TextError, match="must match a file, but got none"):
            expand_sources(["memory://reptrain/data/*.parquet"])
    finally:
        memory.rm("/reptrain", recursive=True)


def test_expand_sources_names_the_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    with pytest.raises(TextError, match=r"s3://bucket/a\.jsonl: .* pip install 'reptrain\[s3\]'"):
        expand_sources(["s3://bucket/a.jsonl"])
    with pytest.raises(TextError, match=r"other://host/a\.jsonl: .*Protocol not known: other"):
        expand_sources(["other://host/a.jsonl"])


def test_tokenize_reads_s3(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for key, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "s3cret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(key, value)
        bucket = fsspec.filesystem("s3", skip_instance_cache=True)
        bucket.mkdir("text")
        lines = corpus.read_bytes().split(b"\n")
        for index, part in enumerate((lines[:70], lines[70:])):
            bucket.pipe(f"text/web/{index}.jsonl", b"\n".join(part))
        expected = tokenize([corpus], tmp_path / "local", tokenizer=model)
        manifest = tokenize(["s3://text/web/*.jsonl"], tmp_path / "glob", tokenizer=model)
        assert manifest.fingerprint == expected.fingerprint
        assert manifest.inputs[0].url == "s3://text/web/0.jsonl"
        assert "ETag" in str(manifest.inputs[0].version)
        assert verify(tmp_path / "glob").ok
        names = [file.url for file in expand_sources(["s3://text/web", "s3://text/web/1.jsonl"])]
        assert names == [f"s3://text/web/{index}.jsonl" for index in (0, 1, 1)]
        assert "s3cret" not in (tmp_path / "glob" / "manifest.json").read_text()
        with pytest.raises(TextError, match=r"source s3://text/none\.jsonl: must be downloaded completely"):
            tokenize(["s3://text/none.jsonl"], tmp_path / "none", tokenizer=model)
        with pytest.raises(TextError, match=r"source s3://none/a\.jsonl: must be downloaded completely"):
            tokenize(["s3://none/a.jsonl"], tmp_path / "none", tokenizer=model)
    finally:
        server.stop()
