"""The environment of the ranks: the variables that `reptrain launch` sends to every host.

Launchers forward different variables. DeepSpeed forwards those that start with NCCL, PYTHON, UCX, MV2 and
MLFLOW; mpirun forwards only named variables; Slurm forwards all. With every launcher, `reptrain launch` sends
the variables of `FORWARDED_PREFIXES` and `FORWARDED_NAMES`, and those of ``--env``.

Secrets, such as HF_TOKEN and WANDB_API_KEY, never appear on a command line, where other users could read
them. They are sent in a file that only the user can read, which is removed when the launch ends.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path

from reptrain.errors import LaunchError

FORWARDED_PREFIXES = (
    "AWS_",
    "CUDA_",
    "DS_",
    "FI_",
    "GLOO_",
    "HF_",
    "KMP_",
    "MKL_",
    "NCCL_",
    "OMP_",
    "PYTORCH_",
    "REPTRAIN_",
    "TORCHINDUCTOR_",
    "TORCH_",
    "TRANSFORMERS_",
    "TRITON_",
    "UCX_",
    "WANDB_",
)
"""Prefixes of the names of variables that are sent to every host."""
FORWARDED_NAMES = (
    "HTTPS_PROXY",
    "HTTP_PROXY",
    "LD_LIBRARY_PATH",
    "NO_PROXY",
    "TOKENIZERS_PARALLELISM",
    "XDG_CACHE_HOME",
    "https_proxy",
    "http_proxy",
    "no_proxy",
)
"""Other variables that are sent to every host."""
SECRETS_FILE = "REPTRAIN_SECRETS_FILE"
"""Variable with the path of the file from which `reptrain train` reads the secrets."""
# A launcher sets the devices of each host, and DS_ENV_FILE names a file of this host.
_OWN_OF_A_HOST = {"CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "DS_ENV_FILE", SECRETS_FILE}
_SECRET = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSPHRASE|API_KEY|ACCESS_KEY(_ID)?|CREDENTIALS?)$")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN = re.compile(r"[\w@%+=:,./-]*", re.ASCII)


def forwarded(environ: Mapping[str, str] = os.environ, extra: Mapping[str, str] = {}) -> dict[str, str]:
    """The variables to send to every host, sorted by name.

    Args:
        environ: The environment of the launching process.
        extra: Variables to send regardless of their names, as from ``--env``.

    Raises:
        LaunchError: If a value contains a line break, which no launcher can send.
    """
    chosen = {
        name: value
        for name, value in environ.items()
        if (name in FORWARDED_NAMES or name.startswith(FORWARDED_PREFIXES)) and name not in _OWN_OF_A_HOST
    }
    chosen |= extra
    for name, value in chosen.items():
        if "\n" in value or "\r" in value:
            raise LaunchError(
                f"environment variable {name}",
                got=repr(value[:60]),
                rule="must have no line break to be sent to other hosts",
                remedy="Remove the line break, or unset the variable.",
            )
    return dict(sorted(chosen.items()))


def parse_settings(texts: Sequence[str]) -> dict[str, str]:
    """The variables of ``--env NAME=VALUE``; ``NAME`` alone takes the value of this process.

    Raises:
        LaunchError: If one has no valid name, or no value.
    """
    settings: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not _NAME.fullmatch(name) or (not equals and name not in os.environ):
            raise LaunchError(
                "--env",
                got=repr(text[:60]),
                rule="must be NAME=VALUE, or the NAME of a variable that is set",
                remedy="For example --env NCCL_DEBUG=INFO.",
            )
        settings[name] = value if equals else os.environ[name]
    return settings


def split_secrets(variables: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """The variables that may appear on a command line, and the secrets."""
    secret = {name: value for name, value in variables.items() if _SECRET.search(name)}
    return {name: value for name, value in variables.items() if name not in secret}, secret


def deepspeed_file(variables: Mapping[str, str]) -> str:
    """The text of the file that DS_ENV_FILE names, from which DeepSpeed reads variables to forward.

    DeepSpeed puts a value with special characters between double quotes for the shell of each host, but does
    not escape it, and pdsh replaces ``%`` sequences.
    """
    lines = []
    for name, value in variables.items():
        if not _PLAIN.fullmatch(value):
            value = re.sub(r'([\\"$`])', r"\\\1", value)
        lines.append(f"{name}={value.replace('%', '%%')}\n")
    return "".join(lines)


def deepspeed_argument(word: str) -> str:
    """An argument of the ranks' program, quoted so that DeepSpeed and pdsh pass it on unchanged.

    DeepSpeed puts an argument with a space between double quotes and escapes ``"`` in it. It sends other
    arguments to the shell of each host as they are.

    >>> deepspeed_argument("a={x: 1, y: $2}")
    'a={x: 1, y: \\\\$2}'
    >>> deepspeed_argument("[1,2]")
    "'[1,2]'"
    """
    word = re.sub(r"([\\$`])", r"\\\1", word) if " " in word else shlex.quote(word)
    return word.replace("%", "%%")


def write_secrets(path: Path, secrets: Mapping[str, str]) -> None:
    """Write the secrets to a file that only the user can read."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.writelines(f"{name}={value}\n" for name, value in secrets.items())


def load_secrets(environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the secrets from the file named in `SECRETS_FILE`, in a rank that `reptrain launch` started."""
    path = environ.pop(SECRETS_FILE, None)
    if path is None:
        return
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise LaunchError(
            f"file {path} of {SECRETS_FILE}",
            got=error.strerror,
            rule="must be readable on every host",
            remedy="Put the run folder on a file system that the hosts share.",
        ) from error
    for line in lines:
        name, _, value = line.partition("=")
        environ.setdefault(name, value)
