"""The variables that are sent to every host arrive unchanged through shells and pdsh."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.errors import LaunchError
from reptrain_launcher.forwarding import (
    deepspeed_argument,
    deepspeed_file,
    forwarded,
    load_secrets,
    parse_settings,
    split_secrets,
    write_secrets,
)


def test_forwarded_variables_are_those_of_the_ranks() -> None:
    environ = {
        "GLOO_SOCKET_IFNAME": "eth0", "HF_TOKEN": "t", "OMP_NUM_THREADS": "2", "HOME": "/root",
        "CUDA_VISIBLE_DEVICES": "3", "DS_ENV_FILE": "x", "XDG_CACHE_HOME": "/c", "MINE": "1",
    }  # fmt: skip
    sent = forwarded(environ, {"MINE": "2"})
    assert [*sent] == ["GLOO_SOCKET_IFNAME", "HF_TOKEN", "MINE", "OMP_NUM_THREADS", "XDG_CACHE_HOME"]
    assert sent["MINE"] == "2"
    shown, secrets = split_secrets(sent)
    assert secrets == {"HF_TOKEN": "t"} and "HF_TOKEN" not in shown
    with pytest.raises(LaunchError, match="HF_HOME: must have no line break"):
        forwarded({"HF_HOME": "a\nb"})


@pytest.mark.parametrize(
    "name",
    ["WANDB_API_KEY", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"],
)
def test_secrets_are_recognized(name: str) -> None:
    assert split_secrets({name: "x"}) == ({}, {name: "x"})


def test_tokenizers_parallelism_is_no_secret() -> None:
    assert split_secrets({"TOKENIZERS_PARALLELISM": "1"})[1] == {}


@pytest.mark.parametrize("text", ["", "=x", "1A=x", "REPTRAIN_NOT_SET_ANYWHERE", "A B=1"])
def test_env_refuses_what_is_no_setting(text: str) -> None:
    with pytest.raises(LaunchError, match="--env: must be NAME=VALUE"):
        parse_settings([text])


def test_env_takes_values_and_variables_that_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "here")
    assert parse_settings(["MINE", "OTHER=a=b"]) == {"MINE": "here", "OTHER": "a=b"}


def test_secrets_travel_in_a_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "secrets"
    write_secrets(path, {"HF_TOKEN": "a=b", "WANDB_API_KEY": "c"})
    assert path.stat().st_mode & 0o777 == 0o600
    environ = {"REPTRAIN_SECRETS_FILE": str(path), "WANDB_API_KEY": "of this host"}
    load_secrets(environ)
    assert environ == {"HF_TOKEN": "a=b", "WANDB_API_KEY": "of this host"}
    with pytest.raises(LaunchError, match="must be readable on every host"):
        load_secrets({"REPTRAIN_SECRETS_FILE": str(tmp_path / "gone")})


_LINES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")) | st.just(" ")
)


def through_pdsh(line: str) -> str:
    """The line that a host's shell gets."""
    return line.replace("%%", "%")


@given(_LINES.map(str.strip))
def test_a_value_arrives_unchanged(value: str) -> None:
    """Forward a value like the DeepSpeed runner: read from the file, quoted, and exported by a shell."""
    import re

    _, _, read = deepspeed_file({"A": value}).strip().partition("=")
    read = read.strip()
    if re.search(r"[^\w@%+=:,./-]", read):
        read = f'"{read}"'
    line = through_pdsh(f'export A={read}; printf %s "$A"'.replace("printf %s", "printf %%s"))
    assert subprocess.run(["bash", "-c", line], capture_output=True, env=os.environ).stdout == value.encode()


@given(_LINES.filter(bool))
def test_an_argument_arrives_unchanged(word: str) -> None:
    quoted = deepspeed_argument(word)
    if " " in quoted:
        quoted = '"{}"'.format(quoted.replace('"', '\\"'))
    line = through_pdsh(f"printf %%s {quoted}")
    assert subprocess.run(["bash", "-c", line], capture_output=True).stdout == word.encode()
