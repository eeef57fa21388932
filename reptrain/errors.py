"""Errors that a user can fix.

Each names what is wrong, the value got, the rule and the remedy. The command line prints only the message and
exits with code 2; bugs keep their traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_MESSAGE = 500
_SHORTEST_PART = 100


def shorten(text: str, length: int) -> str:
    """A text of at most this many characters, shortened in the middle. Unprintable characters are escaped.

    >>> shorten("abcdefghij", 5)
    'ab…ij'
    >>> shorten("a\\tb", 5)
    'a\\\\tb'
    """
    if len(text) > length:
        tail = (length - 1) // 2
        text = f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class ReptrainError(ValueError):
    """Base of all errors that a user can fix.

    Args:
        what: The name of the setting, file or quantity that is wrong.
        got: Its value; None if the rule says it.
        rule: The rule that it breaks.
        remedy: How to fix it.
    """

    def __init__(self, what: str, *, got: object | None, rule: str, remedy: str) -> None:
        self.what, self.got, self.rule, self.remedy = what, got, rule, remedy
        super().__init__(_message(what, rule, None if got is None else str(got), remedy))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors are sent from the main rank to the others.
        got = None if self.got is None else str(self.got)
        return _rebuild, (type(self), self.what, got, self.rule, self.remedy)


def _message(what: str, rule: str, got: str | None, remedy: str) -> str:
    """The parts as one line. If it is too long, the parts from the input are shortened first."""
    parts = {"what": what, "rule": rule, "got": got or "", "remedy": remedy}
    excess = sum(map(len, parts.values())) + len(": , but got . ") - _LONGEST_MESSAGE
    for name in ("got", "what", "remedy", "rule"):
        length = len(parts[name])
        if excess > 0:
            length = min(length, max(_SHORTEST_PART, length - excess))
            excess -= len(parts[name]) - length
        parts[name] = shorten(parts[name], length)
    shown = "" if got is None else f", but got {parts['got']}"
    return f"{parts['what']}: {parts['rule']}{shown}. {parts['remedy']}"


def _rebuild(kind: type[ReptrainError], what: str, got: str | None, rule: str, remedy: str) -> ReptrainError:
    return kind(what, got=got, rule=rule, remedy=remedy)


class ConfigError(ReptrainError):
    """An invalid configuration."""


def check_choice(what: str, got: object, choices: Iterable[str]) -> None:
    """Refuse a value that is not one of the choices. Python does not check Literal types.

    Args:
        what: The name of the argument.
        got: Its value.
        choices: The valid values.

    Raises:
        ConfigError: If it is not one of them.
    """
    known = list(choices)
    if got not in known:
        raise ConfigError(
            what, got=repr(got), rule=f"must be one of {', '.join(known)}", remedy="Choose one of these."
        )


class TextError(ReptrainError):
    """A source of text that cannot be read."""


class TokenizerError(ReptrainError):
    """A tokenizer that cannot be loaded or trained, or does not fit its data."""


class StoreError(ReptrainError):
    """A token store that is missing, unsealed, changed, or too small."""


class PlanError(ReptrainError):
    """A plan of epochs that cannot be carried out exactly."""


class RunError(ReptrainError):
    """A run folder that is missing, locked, or in the wrong state."""


class CannotSayError(RunError):
    """Evidence that an audit needs is damaged or missing: exit code 4."""


class ResumeError(RunError):
    """A run folder that holds another run than the one to resume."""


class LaunchError(ReptrainError):
    """Ranks that cannot be started."""


class StudyError(ReptrainError):
    """A study that cannot be run."""


class AnalysisError(ReptrainError):
    """A table, question or fit that has no answer."""


class HubError(ReptrainError):
    """A Hugging Face folder that cannot be imported, or a model that cannot be exported."""
