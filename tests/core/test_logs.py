"""Lines of logs name time and stage; no secret stands in them, in errors, or in written files."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.redact import redact
from tests.conftest import (
    ROOT,
    TINY,
    assert_clear_error,
    find_port,
    invoke,
    read_default_params,
    write_params,
)
from tests.download.test_webdataset import sample, write_shard

SECRETS = {
    "HF_TOKEN": "hf_SecretOfTheHub0123456789",
    "AWS_SECRET_ACCESS_KEY": "SecretOfAmazon/abc+def",
    "MILVUS_AUTH": "root:SecretOfMilvus",
    "WANDB_API_KEY": "SecretOfTheTracker",
}
PASSWORD, SIGNATURE, TOKEN = "SecretOfTheUser", "SecretSignature", "SecretQueryToken"
CANARY = "CanaryThatNobodyAskedFor"
LINE = re.compile(r"^\d\d:\d\d:\d\d (\w+): \S.*$")


@pytest.fixture(autouse=True)
def _secrets(monkeypatch):
    for name, value in {**SECRETS, "SOME_VARIABLE": CANARY}.items():
        monkeypatch.setenv(name, value)


def assert_no_secret(*texts: bytes | str) -> None:
    for text in texts:
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        for secret in (*SECRETS.values(), PASSWORD, SIGNATURE, TOKEN, CANARY):
            assert secret not in shown


def address(url: str, name: str) -> str:
    """As a presigned address of a server with a password."""
    host = url.removeprefix("http://")
    query = f"X-Amz-Signature={SIGNATURE}&token={TOKEN}"
    return f"http://somebody:{PASSWORD}@{host}/{name}?{query}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a:b@host/x", "https://***@host/x"),
        ("at https://a:b@c@host/x now", "at https://***@host/x now"),
        ("s3://b/k?X-Amz-Signature=1&b=2, retried", "s3://b/k?***, retried"),
        ("with url: /k?sig=abc (Caused by x)", "with url: /k?*** (Caused by x)"),
        ("Authorization: Bearer abc.def-ghi", "Authorization: Bearer ***"),
        ("hf_abcdefghijklmnopqr is refused", "*** is refused"),
        (f"{SECRETS['AWS_SECRET_ACCESS_KEY']} is refused", "*** is refused"),
        ("did you mean kdmcse? see a@b.org, x = 1", "did you mean kdmcse? see a@b.org, x = 1"),
        ("https://host/x@y and hf_short", "https://host/x@y and hf_short"),
        (f"data/tokens/of/sentences {ROOT} 1", f"data/tokens/of/sentences {ROOT} 1"),
    ],
)
def test_what_is_hidden_and_what_is_not(text, shown, monkeypatch):
    monkeypatch.setenv("KDMCSE_TOKENS", "data/tokens/of/sentences")
    monkeypatch.setenv("SSH_KEY", str(ROOT))  # a place is no secret
    monkeypatch.setenv("SHORT_TOKEN", "1")
    assert redact(text) == shown


@given(
    st.text(st.characters(categories=("L", "N")), min_size=8, max_size=20),
    st.from_regex(r"[A-Za-z0-9._~%!$&+:-]{8,19}[a-z]", fullmatch=True),
)
def test_no_password_is_left_of_any_address(user, password):
    hidden = redact(f"cannot fetch https://{user}:{password}@host/file?key={password}: refused")
    assert hidden == "cannot fetch https://***@host/file?***: refused"


def run(*arguments: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.fixture
def remote_shard(tmp_path, server):
    """params.yaml that names a shard by an address full of secrets; returns its folder."""
    url, folder, _ = server
    keys = [f"{row:04d}" for row in range(30)]
    write_shard(folder / "one.tar", *[sample(key, f"caption {key}") for key in keys])
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    webdataset = {"shards": address(url, "one.tar")}
    write_params(scratch, TINY, {"download": {"pairs": "webdataset", "webdataset": webdataset}})
    return scratch


def files_of(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.integration
def test_a_download_logs_to_stderr_alone_and_tells_no_secret(remote_shard):
    """It writes none either, except into params.yaml, where the user wrote them."""
    done = run("-m", "stages.download", cwd=remote_shard)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if "fetching" in line]
    assert LINE.match(line)[1] == "download"
    assert "one.tar" in line
    written = [path for path in files_of(remote_shard) if path.name != "params.yaml"]
    assert_no_secret(done.stderr, *(path.read_bytes() for path in written))
    assert not [path for path in written if path.suffix == ".log"]


@pytest.mark.parametrize(
    "fault", ["refused", "not there", pytest.param("no server", marks=pytest.mark.slow)]
)
def test_a_download_that_fails_tells_no_secret(remote_shard, server, fault, monkeypatch):
    url, folder, handler = server
    monkeypatch.chdir(remote_shard)
    monkeypatch.setenv("KDMCSE_DEBUG", "1")
    (folder / "one.tar").unlink()
    if fault == "refused":
        handler.faults.extend([lambda request: request.send_error(403) or True] * 9)
    if fault == "no server":
        text = (remote_shard / "params.yaml").read_text()
        port = url.rpartition(":")[2]
        (remote_shard / "params.yaml").write_text(text.replace(port, str(find_port())))
    failed = invoke("download")
    assert_clear_error(failed, "***")
    assert_no_secret(failed.output)


FAILS = """
import os
from pipeline.core.progress import log
from stages._cli import run_stage

def main() -> None:
    log.warning("%s", os.environ)
    raise KeyError(os.environ["HF_TOKEN"] + " {address}")

run_stage(main)()
"""


@pytest.mark.integration
def test_an_unexpected_error_and_its_traceback_tell_no_secret(tmp_path):
    script = tmp_path / "stage.py"
    script.write_text(FAILS.format(address=address("http://x", "y")))
    failed = run(str(script), cwd=tmp_path, KDMCSE_DEBUG="1", SOME_VARIABLE="")
    assert failed.returncode == 1
    assert "Traceback" in failed.stderr
    assert LINE.match(failed.stderr.splitlines()[0])[1] == "stage"
    assert_no_secret(failed.stderr)


def test_a_wrong_value_in_params_tells_no_secret(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, {"student": {"pooling": address("http://host", "x")}})
    failed = invoke("download")
    assert_clear_error(failed, "student.pooling")
    assert_no_secret(failed.output)


def test_milvus_that_cannot_be_reached_tells_no_secret(in_tiny_run):
    uri = f"http://127.0.0.1:{find_port()}"
    for options in (["--uri", uri, "--token-env", "MILVUS_AUTH"], ["--uri", address(uri, "")]):
        result = invoke("index", "--to", "milvus", *options)
        assert_clear_error(result)
        assert_no_secret(result.output)


@pytest.mark.slow
def test_no_stage_writes_its_environment_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_params(tmp_path, TINY, {"train": {"report_to": ["tensorboard"]}})
    for stage in ("download", "features", "train", "baselines", "evaluate", "summary", "index"):
        result = invoke(stage)
        assert result.exit_code == 0, result.output
        assert_no_secret(result.output)
    written = files_of(tmp_path)
    assert any(path.name == "README.md" for path in written)
    assert_no_secret(*(path.read_bytes() for path in written))
    assert_no_secret(str(read_default_params()))
