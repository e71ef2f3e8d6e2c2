# SPDX-License-Identifier: Apache-2.0
"""adapter_config.json of adapters: in a cache, and asked of a Hub that answers as the real one does."""

import http.server
import json
import threading

import pytest

from ansible.module_utils.vllm_fleet.models import adapter_files
from ansible.module_utils.vllm_fleet.vllm import adapters
from ansible.module_utils.vllm_fleet.weights import snapshot
from ansible.module_utils.vllm_fleet.weights.layout import Repository

COMMIT = "1" * 40
FILE = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "acme/big"}
GIVEN = {"a": {"repo": "acme/lora", "revision": COMMIT}}


class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        server.asked.append((self.path, self.headers.get("Authorization")))
        status, code, body = server.answer
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        if status in (302, 307):
            self.send_header("Location", f"http://localhost:{server.server_port}/elsewhere")
            server.answer = (200, "", server.body)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def running():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.body = json.dumps(FILE).encode()
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub(running):
    running.asked, running.answer = [], (200, "", running.body)
    return running


def look(running_hub, cache=None, **asked):
    endpoint = f"http://127.0.0.1:{running_hub.server_port}" if running_hub else "http://127.0.0.1:9"
    given = {"hub": True, "endpoint": endpoint, "token": "", "args": {}, **asked}
    found = adapter_files.findings(adapters.parse(GIVEN), given, "acme/big", cache)
    return [(one.level, one.got) for one in found]


@pytest.mark.parametrize(
    ("answer", "level", "words"),
    [
        ((404, "RepoNotFound", b""), "refused", "none, or one that the Hub shows to its owners alone (hf_token"),
        ((401, "", b""), "refused", "none, or one that the Hub shows"),
        ((401, "GatedRepo", b""), "refused", "a gated repository"),
        ((403, "GatedRepo", b""), "refused", "a gated repository"),
        ((404, "RevisionNotFound", b""), "refused", "no commit 111111111111"),
        ((404, "EntryNotFound", b""), "refused", "no adapter_config.json, so it is no adapter"),
        ((503, "", b""), "unknown", "HTTP 503"),
        ((200, "", b"<html>"), "refused", "adapter_config.json that is no JSON"),
        ((200, "", b"[]"), "refused", "no JSON object"),
    ],
)
def test_what_the_hub_says(hub, answer, level, words):
    hub.answer = answer
    ((found, got),) = look(hub)
    assert (found, words in got) == (level, True), got
    assert hub.asked == [(f"/acme/lora/resolve/{COMMIT}/adapter_config.json", None)]


def test_the_token_goes_to_the_hub_and_not_where_it_leads(hub):
    hub.answer = (307, "", b"")
    assert look(hub, token="hf_secret") == [("ok", "rank 8")]
    assert [key for _, key in hub.asked] == ["Bearer hf_secret", None]


def test_a_hub_that_is_not_there_or_is_not_asked(hub):
    ((level, got),) = look(None)
    assert level == "unknown" and "no answer" in got
    assert look(hub, **{"hub": False}) == []
    assert look(hub, endpoint="file:///etc")[0][0] == "unknown"
    assert hub.asked == []


def put(cache, content, commit=COMMIT):
    folder = Repository(cache, "acme/lora").snapshot(commit)
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(content)
    return folder


def test_what_the_cache_has_is_not_asked_for(hub, tmp_path):
    put(tmp_path, json.dumps({**FILE, "r": 64}))
    assert look(hub, tmp_path) == [("refused", "64")]
    assert look(hub, tmp_path, args={"max-lora-rank": 64}) == [("ok", "rank 64")]
    assert hub.asked == []


def test_a_file_in_the_cache_that_is_none(hub, tmp_path):
    put(tmp_path, "{" * 100_000)
    ((level, got),) = look(hub, tmp_path)
    assert level == "refused" and "is no JSON" in got


def test_the_check_before_a_start_misses_files_and_reads_ranks(tmp_path):
    folder = put(tmp_path, json.dumps(FILE))
    fine = adapter_files.judged({"a": folder}, {}, "acme/big")
    assert adapter_files.worst(fine) is None
    lost = adapter_files.worst(adapter_files.judged({"a": folder, "b": tmp_path / "no"}, {}, "acme/big"))
    assert lost.got == f"no adapter_config.json in {tmp_path}/no" and "hf_cache" in lost.remedy
    (folder / "adapter_config.json").write_text("no")
    assert adapter_files.worst(adapter_files.judged({"a": folder}, {}, "acme/big")).level == "refused"


def test_an_adapters_snapshot_of_links_alone_is_whole(tmp_path):
    """A cache that was filled by hand has no list of files: an adapter has no config.json."""
    repository = Repository(tmp_path, "acme/lora")
    folder = put(tmp_path, json.dumps(FILE))
    header = b"{}"
    (folder / "adapter_model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    assert snapshot.inspect(repository, COMMIT).missing == []
    (folder / "adapter_config.json").unlink()
    assert "config.json" in str(snapshot.inspect(repository, COMMIT).missing)
