"""Whether a ledger ends, or once ended, with a head that was published or signed.

A chain alone shows editing only to those who know its head: whoever changes a line can rewrite all later
lines. Signatures are those of `ssh-keygen -Y`, made with a key of the user.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from reptrain.errors import ConfigError
from reptrain.files import read_small, write_atomically
from reptrain.reading import decode
from reptrain.runs.ledger import Line

# A signature made for another purpose is not accepted.
_NAMESPACE = "reptrain-ledger"
_BEGIN = "reptrain ledger "


class Signed(NamedTuple):
    """A signature to check."""

    signature: Path
    """The signature of a head, as `sign_head` writes it."""
    signers: Path
    """Allowed signers, a file as ssh-keygen(1) describes it: an identity and a public key on each line."""


class HeadResult(NamedTuple):
    """What a head was compared with."""

    text: str | None
    """A published head or a signature that fits; None if there was nothing to compare with."""
    damage: tuple[str, ...] = ()
    """Why the ledger is not the one that was published or signed."""


def sign_head(head: str, key: Path, out: Path) -> None:
    """Sign the head of a ledger: a line that names it, and then the signature of this line.

    Args:
        head: Hash of the last line.
        key: Private key, or a public key whose private part the SSH agent holds.
        out: File for the signature.

    Raises:
        ConfigError: If the key cannot be used.
    """
    line = f"{_BEGIN}{head}\n"
    write_atomically(out, line + signature_of(line, key, _NAMESPACE))


def signature_of(text: str, key: Path, namespace: str) -> str:
    """An SSH signature of a text.

    Args:
        text: What to sign.
        key: Private key, or a public key whose private part the SSH agent holds.
        namespace: Purpose of the signature; one made for another purpose is not accepted.

    Raises:
        ConfigError: If the key cannot be used.
    """
    result = _ssh_keygen("sign", "-f", str(key), text=text, namespace=namespace)
    if result.returncode:
        raise ConfigError(
            f"--sign {key}",
            got=_said(result),
            rule="must be a key that ssh-keygen can sign with",
            remedy="Create one with `ssh-keygen -t ed25519 -f FILE`.",
        )
    return result.stdout


class HeadCheck:
    """Compares the lines of a ledger with a published or a signed head.

    Args:
        head: The published head; None: none.
        signed: The signature; None: none.

    Raises:
        ConfigError: If the signature is not one, or of none of the signers.
    """

    def __init__(self, head: str | None, signed: Signed | None) -> None:
        self._wanted: dict[str, str] = {}
        """What to look for: a head, and who names it."""
        if head is not None:
            self._wanted[head] = f"the head {head} that was given"
        if signed is not None:
            signer, of = _verified(signed)
            self._wanted[of] = f"the signature by {signer}"
        self._found: dict[str, int] = {}

    def watch(self, lines: Iterator[Line]) -> Iterator[Line]:
        """Pass the lines on, looking for the heads."""
        for line in lines:
            if line.hash in self._wanted:
                self._found[line.hash] = line.number
            yield line

    def result(self, num_lines: int) -> HeadResult:
        """The result, after all lines.

        Args:
            num_lines: Number of lines.
        """
        texts, damage = [], []
        for head, named in self._wanted.items():
            number = self._found.get(head)
            if number is None:
                damage.append(f"ledger.jsonl has no line of the hash {head}: it is not the ledger of {named}")
            else:
                texts.append(named if number == num_lines else f"{named} as far as line {number:,}")
        return HeadResult(" and ".join(texts) or None, tuple(damage))


def _verified(signed: Signed) -> tuple[str, str]:
    """Who signed, and the head that was signed.

    Raises:
        ConfigError: If the signature is not one, or of none of the signers.
    """
    try:
        line, _, signature = decode(read_small(signed.signature)).partition("\n")
        read_small(signed.signers)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--signature {signed.signature} --signers {signed.signers}",
            got=error,
            rule="must be files",
            remedy="Check the paths.",
        ) from error
    head = line.removeprefix(_BEGIN)
    with NamedTemporaryFile("w", suffix=".sig") as file:
        file.write(signature)
        file.flush()
        at = ["-s", file.name, "-f", str(signed.signers)]
        found = _ssh_keygen("find-principals", *at)
        signer = found.stdout.split("\n")[0]
        result = _ssh_keygen("verify", *at, "-I", signer, text=f"{line}\n") if signer else found
    if result.returncode or not signer or not re.fullmatch(r"[0-9a-f]{32}", head):
        raise ConfigError(
            f"--signature {signed.signature}",
            got=_said(result),
            rule=f"must be a signature that `reptrain audit --sign` wrote, by a key in {signed.signers}",
            remedy="Check the file, and that --signers has a line `NAME PUBLIC-KEY` for the key that signed.",
        )
    return signer, head


def _ssh_keygen(
    action: str, *arguments: str, text: str = "", namespace: str = _NAMESPACE
) -> subprocess.CompletedProcess[str]:
    """Run ssh-keygen -Y.

    Raises:
        ConfigError: If there is none.
    """
    command = ["ssh-keygen", "-Y", action, "-n", namespace, *arguments]
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise ConfigError(
            "signatures",
            got="no ssh-keygen",
            rule="need the program ssh-keygen",
            remedy="Install OpenSSH's client.",
        ) from error


def _said(result: subprocess.CompletedProcess[str]) -> str:
    return " ".join((result.stderr or result.stdout).split()) or "no signature"
