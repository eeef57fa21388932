"""Errors that a user can mend.

Each says what is wrong, the value got, the rule, and the remedy. The command line prints
the message alone and exits with code 2; bugs keep their traceback.
"""

from __future__ import annotations

from collections.abc import Iterable

_LONGEST_MESSAGE = 500
_SHORTEST_PART = 100


def shorten(text: str, length: int) -> str:
    """A text of at most so many characters, cut in the middle; what no terminal prints is escaped.

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
    """Base of all errors that a user can mend.

    Args:
        what: The name of the setting, file or quantity that is wrong.
        got: The value met.
        rule: What the value must be.
        remedy: What to do about it.
    """

    def __init__(self, what: str, *, got: object, rule: str, remedy: str) -> None:
        self.what, self.got, self.rule, self.remedy = what, got, rule, remedy
        super().__init__(_message(what, rule, str(got), remedy))

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel from the main rank to the others.
        return _rebuild, (type(self), self.what, str(self.got), self.rule, self.remedy)


def _message(what: str, rule: str, got: str, remedy: str) -> str:
    """The parts as one line; where they are too long, what the input says is cut before our own words."""
    parts = {"what": what, "rule": rule, "got": got, "remedy": remedy}
    excess = sum(map(len, parts.values())) + len(": , but got . ") - _LONGEST_MESSAGE
    for name in ("got", "what", "remedy", "rule"):
        length = len(parts[name])
        if excess > 0:
            length = min(length, max(_SHORTEST_PART, length - excess))
            excess -= len(parts[name]) - length
        parts[name] = shorten(parts[name], length)
    return "{what}: {rule}, but got {got}. {remedy}".format(**parts)


def _rebuild(kind: type[ReptrainError], what: str, got: str, rule: str, remedy: str) -> ReptrainError:
    return kind(what, got=got, rule=rule, remedy=remedy)


class ConfigError(ReptrainError):
    """A configuration that cannot be run."""


def check_choice(what: str, got: object, choices: Iterable[str]) -> None:
    """Refuse a word that is none of the choices; the types say so, but Python does not hold them.

    Args:
        what: The name of the argument.
        got: The value given.
        choices: The words that it may be.

    Raises:
        ConfigError: If it is none of them.
    """
    known = list(choices)
    if got not in known:
        raise ConfigError(
            what, got=repr(got), rule=f"must be one of {', '.join(known)}", remedy="Choose one of these."
        )


class TextError(ReptrainError):
    """A source of text that cannot be read."""


class TokenizerError(ReptrainError):
    """A tokenizer that cannot be loaded, trained, or that does not fit its data."""


class StoreError(ReptrainError):
    """A token store that is missing, unsealed, changed, or too small."""


class PlanError(ReptrainError):
    """A plan of epochs that cannot be followed exactly."""


class RunError(ReptrainError):
    """A run folder that is missing, locked, or in a state that forbids the request."""


class ResumeError(RunError):
    """A run folder that holds something other than what is to be resumed."""


class LaunchError(ReptrainError):
    """Ranks that cannot be started as asked."""


class StudyError(ReptrainError):
    """A study file that cannot be carried out."""


class HubError(ReptrainError):
    """A Hugging Face folder that cannot be read as a model, or a model that cannot be written as one."""
