# SPDX-License-Identifier: Apache-2.0
"""`doctor counters` against a server that answers as vLLM's development interface does."""

import json
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from nvfp4_moe.plugin.worker import Counters

CLEAN = {"device": "cuda:0", "saturated_blocks": 0, "nonfinite_values": 0, "out_of_range_ids": 0, "first_bad_token": -1}
NAN = CLEAN | {"device": "cuda:1", "nonfinite_values": 7, "first_bad_token": 3}


@pytest.fixture
def server():
    """The URL, the workers' answers to be set, and the methods that were called."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            method = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["method"]
            serving.methods.append(method)
            results = serving.workers if method == "nvfp4_moe_counters" else [None] * len(serving.workers)
            self.send_response(200 if self.path == "/collective_rpc" else 404)
            self.end_headers()
            self.wfile.write(json.dumps({"results": results}).encode())

        def log_message(self, *_):
            pass

    serving = HTTPServer(("127.0.0.1", 0), Handler)
    serving.methods, serving.workers = [], [CLEAN, NAN]
    serving.url = f"http://127.0.0.1:{serving.server_port}"
    threading.Thread(target=serving.serve_forever, daemon=True).start()
    yield serving
    serving.shutdown()


def ask(url, *options):
    command = [sys.executable, "-m", "nvfp4_moe", "doctor", "counters", url, *options]
    path = ":".join(entry for entry in sys.path if entry)
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": path})
    return done.returncode, done.stdout


def test_a_worker_with_nan_is_a_finding_that_says_where_to_look(server):
    status, text = ask(server.url)
    assert status == 1
    assert "worker 1  cuda:1: saturated_blocks 0, nonfinite_values 7" in text
    assert "nonfinite_values: 7 on worker 1; 0 is healthy\n  means  NaN or infinity reached the experts" in text
    assert server.methods == ["nvfp4_moe_counters"]


def test_clean_workers_are_healthy_and_can_be_reset(server):
    server.workers = [CLEAN]
    status, text = ask(server.url, "--json", "--reset")
    report = json.loads(text)
    assert (status, report["workers"], report["healthy"], report["findings"]) == (0, [CLEAN], True, [])
    assert server.methods == ["nvfp4_moe_counters", "nvfp4_moe_reset_counters"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "file:///etc/hostname", "nonsense"])
def test_no_answer_says_how_to_serve(url):
    status, text = ask(url)
    assert status == 1
    assert text.startswith(f"doctor counters  {url}\n")
    assert "VLLM_SERVER_DEV_MODE=1" in text


def test_what_a_worker_answers_are_the_devices_counters():
    worker = Counters()
    worker.device = "cpu"
    worker.nvfp4_moe_reset_counters()
    assert worker.nvfp4_moe_counters() == CLEAN | {"device": "cpu"}
