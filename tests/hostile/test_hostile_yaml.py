"""Settings that no one would write in good faith: one error, soon."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml
from hostile_calls import call, check, refused
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reptrain.config.load import parse_yaml

BASE = "data: {store: nowhere}\n"
CHAIN = list(itertools.pairwise("abcdefgh"))


def chain(first: str, link: str) -> str:
    """Anchors of which each names the one before several times."""
    return "".join([f"a: &a {first}\n", *(f"{b}: &{b} {link.replace('*', '*' + a)}\n" for a, b in CHAIN)])


BOMBS = {
    "list": chain("[x, x, x, x, x, x, x, x, x]", "[*, *, *, *, *, *, *, *, *]"),
    "mapping": chain("{k: x}", "{p: *, q: *, r: *, s: *, t: *, u: *, v: *, w: *}"),
    "merge": chain("{k0: 1, k1: 2}", "{<<: [*, *, *, *, *, *, *, *, *]}"),
    "long text": f"a: &a {'x' * 100_000}\nb: [{'*a, ' * 100}]",
    "itself": "a: &a [*a]",
    "brackets": "[" * 100_000,
    "dashes": "- " * 100_000,
    "braces": "{a: " * 5_000,
    "questions": "? " * 5_000,
    "keys": "{" + ", ".join(f"k{i}: {i}" for i in range(20_000)) + "}",
    "fewer keys": BASE + "\n".join(f"k{i}: {i}" for i in range(4_000)),
    "sources": "data: {sources: [" + "x, " * 4_000 + "]}",
    "large": BASE + "seed: " + "x" * 2**20,
    "digits": BASE + "seed: " + "9" * 5_000,
}
WRONG = {
    "seed: 0x_": "must be a whole number",
    "seed: 0b_": "must be a whole number",
    "seed: !!int x": "is not a whole number",
    "seed: !!float x": "is not a number",
    "seed: !!bool x": "is not true or false",
    "seed: !!timestamp x": "timestamp is not supported",
    "seed: 2020-99-99": "must be a whole number",
    "seed: 2020-01-01": "seed: ",
    "seed: !!set {a}": "set is not supported",
    "seed: !!binary aGk=": "binary is not supported",
    "seed: !!python/object/apply:os.getcwd []": "could not determine a constructor",
    "seed: [1]": "seed: ",
    "seed: {1: 2}": "seed: ",
    "seed: 1\nseed: 2": "duplicate key",
    "? [a]\n: 1": "unhashable key",
    "1: 2": "must be strings",
    "~: 2": "must be strings",
    "<<: {seed: 1}": "merge key",
    'init_from: "a\\0b"': "the character NUL",
    'init_from: "\\ud800"': "must be valid YAML",
    "train: {batch_windows: 2**62}": "below 2**62",
    "train: {batch_windows: 2**61}": "less than or equal to 16777216",
    f"train: {{batch_windows: {10**30}}}": "less than or equal to 16777216",
    "train: {rank_timeout_seconds: 1.0e+300}": "less than or equal to 10000000",
    "train: {total_tokens: 1e99999999epochs}": "must name a number of epochs",
    "train: {total_tokens: 1/1e99999999epochs}": "must name a number of epochs",
    "train: {total_tokens: 9**99999999999}": "must be a number of tokens",
    f"train: {{total_tokens: '{'9' * 5_000}'}}": "must be a number of tokens",
    "average: {start: 1e99999999%}": "must begin with a number",
    "optimizer: {lr: .nan}": "finite",
    "optimizer: {lr: -.inf}": "finite",
    "optimizer: {lr: 1e999}": "finite",
    "model: {num_layers: 1000000000}": "less than or equal to 4096",
    "model: {d_model: 1000000000000}": "less than or equal to 16777216",
    "model: {vocab_size: 1000000000000}": "less than 2147483648",
    "evaluate: {every_fraction: 1.0e-300}": "greater than or equal to",
    "name: ../../x": "without /",
    "name: ..": "without /",
    "name: ''": "without /",
    'name: "a\\e[31mb"': "printable",
    f"name: {'x' * 300}": "200 bytes",
    "extends: ''": "Is a directory",
    "extends: .": "Is a directory",
    "extends: 5": "must be the path",
    "extends: /dev/zero": "larger than",
    f"extends: {'a' * 5_000}": "too long",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "hostile.yaml"


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_time(file: Path, name: str) -> None:
    file.write_text(BOMBS[name])
    study = file.parent / "study.yaml"
    study.write_text(BOMBS[name])
    for command in ("config show", "launch --dry-run --gpus 2", "sizes --vocab-size 9"):
        refused(*command.split(), file)
    refused("study", "status", file.parent)


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_cannot_be_is_named(file: Path, text: str) -> None:
    file.write_text(BASE + text)
    assert WRONG[text] in refused("config", "show", file)


@pytest.mark.parametrize(
    "override",
    [
        *("seed=0x_", "seed=2020-99-99", "seed=!!int x", "seed=" + "9" * 5_000, "seed=" + "[" * 50_000),
        *("a" + ".a" * 5_000 + "=1", "=1", "a..b=1", "seed=&a [*a]", "seed=\ud800", "seed=\0", "seed.x=1"),
        *("data={1: 2}", "name=../x", "data.store.x=1", "x" * 100_000 + "=1", "seed=" + BOMBS["list"]),
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_hostile_overrides_are_refused(file: Path, override: str) -> None:
    file.write_text(BASE)
    refused("config", "show", file, override)


def test_files_that_extend_each_other_end(tmp_path: Path) -> None:
    for index in range(30):
        (tmp_path / f"{index}.yaml").write_text(f"extends: {index + 1}.yaml\n")
    assert "at most 20 files" in refused("config", "show", tmp_path / "0.yaml")


def test_a_study_of_too_many_arms_is_refused(tmp_path: Path) -> None:
    axes = "".join(f"  a.k{i}: [1, 2]\n" for i in range(1_000))
    (tmp_path / "study.yaml").write_text(f"base: {{data: {{store: x}}}}\naxes:\n{axes}")
    assert "at most 10000" in refused("study", "status", tmp_path)


@pytest.mark.parametrize(
    "text", ["a: &a {x: 1}\nb: *a", "a: &a 1\nb: &a [*a]", "[" * 40 + "]" * 40, "{1: 2, '1': 3}"]
)
def test_what_is_within_the_limits_is_read(text: str) -> None:
    if "[*a]" in text:
        with pytest.raises(yaml.YAMLError, match="inside its own anchor"):
            parse_yaml(text)
    else:
        assert parse_yaml(text) == yaml.safe_load(text)


KEYS = [
    *("seed", "name", "init_from", "extends", "data", "data.store", "data.sources", "data.window_tokens"),
    *(
        "data.unique_tokens",
        "train",
        "train.total_tokens",
        "train.batch_windows",
        "train.batch_tokens",
        "train.rank_timeout_seconds",
    ),
    *("model", "model.family", "model.num_layers", "model.d_model", "model.num_heads", "model.vocab_size"),
    *("model.moe", "model.moe.num_experts", "model.moe.top_k", "model.moe.group_windows", "model.dropout"),
    *("model.positions", "model.max_positions", "model.mup_base_width", "model.num_kv_heads", "model.d_ff"),
    *("objective", "objective.name", "objective.input_tokens", "objective.mean_span_tokens", "optimizer"),
    *("optimizer.lr", "optimizer.name", "optimizer.betas", "schedule.name", "schedule.warmup_fraction"),
    *("average", "average.start", "average.decay", "regularize.label_smoothing", "regularize.z_loss"),
    *("evaluate.every_fraction", "evaluate.max_windows", "evaluate.noise_samples", "checkpoint.keep_last"),
    *("x", "1", "data.x", "model.moe.x", "a.b.c.d", "data.sources.a.store", "data.sources.a/b.store"),
]
VALUES = [
    *(
        "",
        "~",
        "true",
        "no",
        "0",
        "-1",
        "1",
        "2",
        "0.5",
        "1e-300",
        "1.0e+300",
        ".nan",
        "-.inf",
        "1e999",
        "010",
        "0x_",
        "0o8",
    ),
    *(
        "1:30:99",
        "2**61",
        "2**62",
        "2**31",
        "10**9",
        "1000000000000",
        "9" * 40,
        "9" * 4_000,
        "1_000",
        "1,000",
    ),
    *("5%", "1e30%", "3epochs", "1/3epochs", "0epochs", "1e40epochs", "2**20targets", "7inputs", "-1epochs"),
    *("2020-01-01", "2020-01-01 25:00:00", "!!int x", "!!set {a}", "!!binary aGk=", "!!omap [a: 1]", "!x y"),
    *("[]", "[[]]", "{}", "{a: 1}", "{1: 2}", "[1, 2, 3]", "&a [*a]", "*a", "&a b", "{<<: {a: 1}}", "<<"),
    *(
        '"\\0"',
        '"\\ud800"',
        '"\\e[0m"',
        "../x",
        "/",
        "~/x",
        "x" * 3_000,
        "decoder",
        "t5",
        "vit",
        "ul2",
        "causal",
    ),
    *(
        "{value: 0.1, start: 50%}",
        "{value: 1, start: 1e9steps, over: 0%}",
        "adafactor",
        "muon",
        "mean",
        "learned",
    ),
    *(
        "|\n  x",
        ">",
        "'",
        '"',
        "{",
        "[",
        "? x",
        "- x",
        "#",
        "@",
        "`",
        "%",
        "\t",
        "\u2028",
        "\ufeff",
        "é",
        "\U0001f600",
    ),
]
COMMANDS = ["config show", "launch --dry-run --gpus 2", "sizes --vocab-size 99", "study status"]


def yaml_of(settings: dict[str, str]) -> str:
    """Keys as nested blocks, values as they are."""
    tree: dict[str, object] = {}
    for key, value in settings.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            below = node.setdefault(parent, {})
            node = below if isinstance(below, dict) else node
        node[leaf] = value

    def lines(node: dict[str, object], depth: int) -> list[str]:
        found = []
        for key, value in node.items():
            if isinstance(value, dict):
                found += [f"{'  ' * depth}{key}:", *lines(value, depth + 1)]
            else:
                found.append(f"{'  ' * depth}{key}: {value}")
        return found

    return "\n".join(lines(tree, 0)) + "\n"


FRAGMENTS = st.lists(
    st.sampled_from(
        [*"{}[]:,-?&*!|>'\"#%@` \n\ta1~.=<", "a: ", "- ", "\n  ", "&a ", "*a", "<<: ", "!!int ", "9e9"]
    ),
    max_size=60,
).map("".join)
SETTINGS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES), min_size=1, max_size=4)
TEXTS = st.one_of(
    SETTINGS.map(lambda found: yaml_of({"data.store": "nowhere"} | found)),
    SETTINGS.map(lambda found: yaml_of({f"base.{key}": value for key, value in found.items()})),
    FRAGMENTS,
    st.binary(max_size=60).map(lambda found: found.decode("latin-1")),
)
OVERRIDES = st.tuples(st.sampled_from(KEYS), st.one_of(st.sampled_from(VALUES), FRAGMENTS))
FUZZ = settings(
    derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck), print_blob=False
)


def try_any(file: Path, text: str, command: str, override: tuple[str, str] | None) -> None:
    file.write_text(text, encoding="utf-8")
    words = command.split()
    if command == "study status":
        (file.parent / "study.yaml").write_text(text, encoding="utf-8")
        check(call(*words, file.parent))
    else:
        check(call(*words, file, *(["=".join(override)] if override else [])))


@settings(FUZZ, max_examples=150)
@given(text=TEXTS, command=st.sampled_from(COMMANDS), override=st.none() | OVERRIDES)
def test_any_settings_are_read_or_refused_in_one_line(
    file: Path, text: str, command: str, override: tuple[str, str] | None
) -> None:
    try_any(file, text, command, override)


@pytest.mark.slow
@settings(FUZZ, max_examples=2500)
@given(text=TEXTS, command=st.sampled_from(COMMANDS), override=st.none() | OVERRIDES)
def test_any_settings_are_read_or_refused_in_one_line_2500_times(
    file: Path, text: str, command: str, override: tuple[str, str] | None
) -> None:
    try_any(file, text, command, override)
