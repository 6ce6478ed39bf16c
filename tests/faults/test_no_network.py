"""With data and models there, nothing needs a network: all of it runs where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, TINY, invoke, write_params
from tests.faults.ledger import record

STAGES = ("download", "features", "train", "baselines", "evaluate", "summary", "index")
QUICK = ("tests/params/test_blocks.py", "tests/download/test_fetch.py")
"""A part of the quick tests that is worth its time: loopback servers are among them."""

ALONE = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Runs a command where no interface but loopback is."""

RUNS_STAGES = """
import importlib, sys
for stage in sys.argv[1:]:
    sys.argv = [stage]
    try:
        importlib.import_module(f"stages.{stage}").app()
    except SystemExit as end:
        assert not end.code, stage
"""

LOOKS_AROUND = """
import socket
assert [name for _, name in socket.if_nameindex()] == ["lo"], socket.if_nameindex()
for address in ("192.0.2.1", "pypi.org", "huggingface.co"):
    try:
        socket.create_connection((address, 443), timeout=10)
    except OSError:
        continue
    raise SystemExit(f"{address} can be reached")
with socket.create_server(("127.0.0.1", 0)) as server:
    socket.create_connection(server.getsockname()).close()
"""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def alone(*arguments: str, cwd: Path = ROOT, timeout: int = 240) -> subprocess.CompletedProcess:
    """Run Python without a network, and without the variables that tell libraries to do without."""
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DATA_MIRROR")
    return subprocess.run(
        [*ALONE, sys.executable, *arguments],
        cwd=cwd,
        env={**{k: v for k, v in os.environ.items() if k not in hidden}, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture(scope="module", autouse=True)
def _can_be_alone():
    try:
        looked = alone("-c", LOOKS_AROUND)
    except FileNotFoundError:
        pytest.skip("NO unshare: what runs without a network is not tested")
    if "unshare" in looked.stderr or "ip: " in looked.stderr:
        pytest.skip(f"NO NAMESPACE: what runs without a network is not tested: {looked.stderr}")
    assert looked.returncode == 0, looked.stderr


def test_the_whole_pipeline_runs(tmp_path, in_tiny_run):
    """And finds what it finds with a network."""
    write_params(tmp_path, TINY)
    done = alone("-c", RUNS_STAGES, *STAGES, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    query = ("a small red circle", "--json")
    found = alone("-m", "stages.search", *query, cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    hits = json.loads(found.stdout)["hits"]
    assert hits == json.loads(invoke("search", *query).stdout)["hits"]
    record("no network", "all stages", "right result", len(STAGES) + 1)


def test_what_needs_a_network_says_so(tmp_path):
    write_params(tmp_path, TINY, {"download": {"text": "wiki1m"}})
    failed = alone("-m", "stages.download", cwd=tmp_path)
    assert failed.returncode == 1
    error, fix = failed.stderr.splitlines()[-2:]
    assert error.startswith("error: ")
    assert "wiki1m" in error
    assert "check the network" in fix
    record("no network", "download of wiki1m", "one clear line")


def test_quick_tests_pass():
    done = alone("-m", "pytest", *QUICK)
    assert done.returncode == 0, done.stdout[-3000:]
    record("no network", "quick tests", "right result")
