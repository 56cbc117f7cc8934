"""Repositories on a hub: a server on this machine, asked by the real client."""

from __future__ import annotations

import functools
import hashlib
import json
import pickle
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest
import torch
from tests.zoo.foreign import Ran, reasons, write

from weightloom.errors import DataUnavailableError, InputError
from weightloom.zoo.hub import parse_address
from weightloom.zoo.importing import carry_out, plan_import
from weightloom.zoo.sources import find_networks

COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine, asked by the real client: ``hub.files[name] = bytes``."""
    import huggingface_hub.constants

    files, asked = {}, []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            about = "/api/models/someone/networks"
            if path.startswith(about + "/tree/"):
                answer = [
                    {"type": "file", "path": n, "size": len(b), "oid": hashlib.sha1(b).hexdigest()}
                    for n, b in files.items()
                ]
            elif path in (about, about + "/revision/main", about + "/revision/v1"):
                siblings = [{"rfilename": name} for name in files]
                answer = {"id": "someone/networks", "sha": COMMIT, "siblings": siblings}
            elif path.startswith(f"/someone/networks/resolve/{COMMIT}/"):
                return self.answer(200, files[path.split("/", 5)[5]])
            else:
                return self.answer(404, b"{}")
            return self.answer(200, json.dumps(answer).encode())

        def answer(self, code, body):
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("ETag", f'"{hashlib.sha1(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if code == 404:
                self.send_header("X-Error-Code", "RepoNotFound")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    place = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download",
        functools.partial(huggingface_hub.snapshot_download, endpoint=place, cache_dir=tmp_path / "cache",
                          token=False, max_workers=1),
    )  # fmt: skip
    server.files, server.asked = files, asked
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_repository(tmp_path, zoo, hub):
    flats = [write(tmp_path / "a.safetensors", 0), write(tmp_path / "b.safetensors", 1)]
    hub.files["model.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    hub.files["more/b.safetensors"] = (tmp_path / "b.safetensors").read_bytes()
    hub.files["pytorch_model.bin"] = pickle.dumps(Ran(tmp_path / "ran"))
    hub.files["modeling.py"] = b"raise SystemExit"
    found = find_networks("hf://someone/networks@v1")
    assert found.format == "hub"
    records = carry_out(zoo, plan_import([found]))
    assert torch.equal(zoo.load(records), torch.stack(flats))
    assert [r.provenance["file"] for r in records] == ["model.safetensors", "more/b.safetensors"]
    assert {(r.provenance["repository"], r.provenance["revision"]) for r in records} == {
        ("someone/networks", COMMIT)
    }
    assert not any(path.endswith((".bin", ".py")) for path in hub.asked), "only safetensors are fetched"
    assert plan_import([find_networks("hf://someone/networks")], zoo=zoo).networks == ()


def test_what_a_hub_may_not(tmp_path, hub):
    with pytest.raises(DataUnavailableError, match="'nobody/nothing' cannot be had"):
        find_networks("hf://nobody/nothing")
    hub.files["pytorch_model.bin"] = b"x"
    with pytest.raises(InputError, match=r"hf://someone/networks: holds no file that ends in \.safetensors"):
        find_networks("hf://someone/networks")
    write(tmp_path / "a.safetensors", 0)
    data = (tmp_path / "a.safetensors").read_bytes()
    for number, name in enumerate(
        ("../../../../up.safetensors", "/up.safetensors", "a/../../up.safetensors")
    ):
        hub.files.clear()
        hub.files[name] = data
        with pytest.raises((DataUnavailableError, InputError)):
            plan_import([find_networks("hf://someone/networks")])
        assert list(tmp_path.rglob("up.safetensors")) == [], number
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)


def test_links_in_a_hubs_cache(tmp_path, hub):
    """They may lead into the repository's own cache and nowhere else."""
    write(tmp_path / "a.safetensors", 0)
    write(tmp_path / "secret.safetensors", 1)
    hub.files["model.safetensors"] = (tmp_path / "a.safetensors").read_bytes()
    find_networks("hf://someone/networks")
    (snapshot,) = (tmp_path / "cache").glob("models--*/snapshots/*")
    (snapshot / "other.safetensors").symlink_to(tmp_path / "secret.safetensors")
    plan = plan_import([find_networks("hf://someone/networks")])
    assert [n.candidate.name for n in plan.networks] == ["model.safetensors"]
    assert reasons(plan) == {"other.safetensors": "is a link that leads out of the folder"}


@pytest.mark.parametrize(
    "text",
    ["hf://", "hf://a", "hf://a/b/c", "hf://../x", "hf://a/..", "hf://a/b@../c", "hf://a/b c", "hf://a/b@",
     "hf://a/.git", "hf://a\n/b", "a/b", "hf://" + "a" * 200 + "/b"],
)  # fmt: skip
def test_addresses(text):
    with pytest.raises(InputError, match="is no address on a hub"):
        parse_address(text)
