import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from pydantic import BaseModel

from reptrain.config import RunConfig, config_fingerprint, differing_keys, load_run_config
from reptrain.config.fingerprint import auto_values
from reptrain.config.load import apply_overrides, dump_yaml, read_yaml, validate
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.config.task import TaskConfig
from reptrain.errors import ConfigError

ROOT = Path(__file__).parents[2]
MINIMAL = {"data": {"store": "somewhere"}}


def resolve(*overrides: str) -> RunConfig:
    return validate(RunConfig, apply_overrides(MINIMAL, overrides))


def test_a_batch_in_tokens_is_the_same_run_as_in_windows() -> None:
    given = resolve("train.batch_tokens=2**14", "data.window_tokens=512")
    expected = resolve("train.batch_windows=32", "data.window_tokens=512")
    assert given.model_dump() == expected.model_dump()
    assert config_fingerprint(given) == config_fingerprint(expected)
    assert given.micro_batch_windows(4) == 8
    again = validate(RunConfig, given.model_dump(mode="json"))
    assert again.model_dump() == expected.model_dump()
    for overrides, words in (
        (["train.batch_tokens=1000"], "multiple of data.window_tokens 256.*next multiple is 1024"),
        (["train.batch_tokens=512", "train.batch_windows=2"], "leave one of the two out"),
    ):
        with pytest.raises(ConfigError, match=words):
            resolve(*overrides)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").rglob("*.yaml")), ids=str)
def test_every_yaml_under_configs_is_valid(path: Path) -> None:
    # A base that studies share is a run.
    if "base" in read_yaml(path):
        from reptrain.study import arms, load_study

        assert arms(load_study(path))
    elif "models" in path.parts:
        from reptrain.sizes import load_subject

        assert load_subject(path).parameters.total > 10**7
    elif "scales" in path.parts:
        from reptrain.study.scales import Scale

        assert validate(Scale, read_yaml(path)).multiply
    elif "tasks" in path.parts:
        assert validate(TaskConfig, read_yaml(path)).name == path.stem
    else:
        # `reptrain bench train` makes the store.
        made = ["data.store=made"] if "bench" in path.parts else []
        assert load_run_config(path, made).name == path.stem


def test_extends_merges_sections_and_replaces_other_values(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "shape.yaml").write_text("model: {d_ff: 7, num_layers: 9}\nseed: 3\n")
    (tmp_path / "below" / "run.yaml").write_text("extends: shape.yaml\ndata: {store: here}\nseed: 4\n")
    (tmp_path / "mine.yaml").write_text("extends: below/run.yaml\nmodel: {num_layers: 1}\n")
    config = load_run_config(tmp_path / "mine.yaml", ["model.num_heads=2"])
    model = config.model
    assert model.family == "decoder"
    assert (model.d_ff, model.num_layers, model.num_heads, config.seed) == (7, 1, 2, 4)
    assert (config.name, config.data.store) == ("mine", "here")


def test_extends_refuses_a_circle_and_values_other_than_paths(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"extends: {other}.yaml\n")
    with pytest.raises(ConfigError, match="must not be circular"):
        load_run_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]\n")
    with pytest.raises(ConfigError, match="must be the path of a YAML file"):
        load_run_config(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text("extends: nowhere.yaml\n")
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: must be a readable file"):
        load_run_config(tmp_path / "a.yaml")


def test_overrides_reach_every_depth() -> None:
    config = resolve(
        "train.total_tokens=2**20", "data.unique_tokens=1e3", "model.dropout.mlp=0.1", "optimizer.lr=3e-4"
    )
    assert config.train.total_tokens.tokens == 2**20
    assert config.data.unique_tokens == 1000
    assert config.model.dropout.mlp.value == 0.1
    assert config.optimizer.lr == 3e-4


def test_overrides_do_not_change_their_input() -> None:
    apply_overrides(MINIMAL, ["data.store=elsewhere"])
    assert MINIMAL == {"data": {"store": "somewhere"}}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.totl_tokens=1", ["train.totl_tokens", "known key", "Did you mean train.total_tokens?"]),
        ("lr=1", ["lr", "Did you mean optimizer.lr?"]),
        ("train.lr=1", ["train.lr", "Did you mean optimizer.lr?"]),
        ("store=x", ["Did you mean data.store or data.sources.NAME.store?"]),
        ("d_modl=64", ["Did you mean model.d_model?"]),
        ("epochs=4", ["Did you mean train.total_tokens=4epochs or data.sources.NAME.total_tokens=4epochs?"]),
        ("batch=32", ["Did you mean train.batch_windows?"]),
        ("learning_rate=1", ["Did you mean optimizer.lr?"]),
        ("xyzzy=1", ["Known keys: average, branch, checkpoint"]),
        ("modle.d_model=1", ["modle", "Did you mean model?"]),
        (
            "objective.noise=frozen",
            ["It belongs to another objective.name", "Known keys: ", "objective='{name: ...}'"],
        ),
        ("model.num_encoder_layers=2", ["It belongs to another model.family", "num_layers"]),
        ("model.dropout.mpl=0.1", ["model.dropout.mpl", "Did you mean model.dropout.mlp?"]),
        ("train.total_tokens=many", ["train.total_tokens", "2**20, 100M or 64epochs", "many"]),
        ("data.unique_tokens=0", ["data.unique_tokens", "greater than 0", "0"]),
        ("model.num_heads=3", ["d_model must be num_heads times an even head width", "128 / 3"]),
        ("model.num_kv_heads=3", ["num_kv_heads must divide num_heads"]),
        ("train.precision=bf16", ["zero_stage"]),
        ("train.precision=int8", ["train.precision", "fp32"]),
        ("model.dropout.mlp=1", ["model.dropout.mlp", "less than 1"]),
        ("optimizer.lr=.nan", ["optimizer.lr", "finite"]),
        ("data=3", ["data"]),
        ("data.store.deeper=3", ["data.store.deeper", "section"]),
    ],
)
def test_validate_names_key_rule_and_value(override: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(override)
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["no-equals", "=3", ".a=3", "a..b=3"])
def test_apply_overrides_refuses_text_without_an_assignment(text: str) -> None:
    with pytest.raises(ConfigError, match="key=value"):
        apply_overrides(MINIMAL, [text])


def test_missing_store_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data: .*set data\.store=FOLDER"):
        validate(RunConfig, {"data": {}})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [1", "must be valid YAML"),
        (b"\xff\xfe", "must be UTF-8, but got UTF-16"),
        (b"a: no", "YAML 1.1 and 1.2 read alike, but got no, which YAML 1.1 reads as false.* line 1"),
        (b"- 1", "mapping"),
        (b"", "mapping"),
        (b"seed: 1\nseed: 2", "unique keys and supported values, but got duplicate key 'seed'"),
        (b"- " * 60, "within the size limits of settings, but got more than 50 levels"),
    ],
)
def test_read_yaml_refuses(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=words):
        read_yaml(path)


def test_read_yaml_names_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_dump_and_load_give_the_same_config(tmp_path: Path) -> None:
    config = resolve("train.total_tokens=2.5epochs", "model.num_kv_heads=2")
    path = tmp_path / "config.yaml"
    path.write_text(dump_yaml(config.model_dump(mode="json")))
    assert load_run_config(path).model_copy(update={"name": None}) == config


def test_fingerprint_follows_the_mathematics_alone() -> None:
    base = resolve()
    assert config_fingerprint(
        resolve("train.zero_stage=2", "train.micro_batch_windows=4")
    ) == config_fingerprint(base)
    assert config_fingerprint(resolve("evaluate.max_windows=4", "data.store=other")) == config_fingerprint(
        base
    )
    assert config_fingerprint(resolve("seed=1")) != config_fingerprint(base)
    assert config_fingerprint(resolve("model.dropout.mlp=0.1")) != config_fingerprint(base)


def test_fingerprint_follows_the_numerics_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = config_fingerprint(resolve())
    monkeypatch.setattr(sys.modules[config_fingerprint.__module__], "NUMERICS_VERSION", NUMERICS_VERSION + 1)
    assert config_fingerprint(resolve()) != before


MOE = "model.moe={num_experts: 4}"
T5 = ("objective.name=span_corruption", "model={family: t5, num_encoder_layers: 2, num_decoder_layers: 4}")


@pytest.mark.parametrize(
    ("given", "auto"),
    [
        ((), "data.window_tokens=256"),
        ((), "train.total_tokens=1epochs"),
        (("model.num_heads=8",), "model.num_kv_heads=8"),
        (("model.num_layers=3",), "model.num_stored_layers=3"),
        ((MOE,), "model.moe.normalize=true"),
        ((MOE, "model.d_ff=64"), "model.moe.d_ff=64"),
        ((MOE, "model.moe.capacity_factor=1.5"), "model.moe.eval_capacity_factor=1.5"),
        (T5, "data.window_tokens=568"),
        (T5, "model.num_stored_encoder_layers=2"),
        (T5, "model.num_stored_decoder_layers=4"),
    ],
)
def test_fingerprint_is_of_resolved_values(given: tuple[str, ...], auto: str) -> None:
    """A null and the value that it stands for are the same run."""
    null, named = resolve(*given), resolve(*given, auto)
    assert config_fingerprint(null) == config_fingerprint(named)
    assert differing_keys(null, named) == []


def test_fingerprint_is_of_resolved_values_of_sources() -> None:
    sources = {"a": {"store": "a"}, "b": {"store": "b"}}
    named = {**sources, "a": {"store": "a", "order": "same", "cut": "fixed", "subset_seed": 0}}
    configs = [validate(RunConfig, {"data": {"sources": s, "order": "same"}}) for s in (sources, named)]
    assert config_fingerprint(configs[0]) == config_fingerprint(configs[1])


# Null means that there is none, or what the store has, or it does not change the results.
NOT_DERIVED = {
    "RunConfig.name",
    "RunConfig.init_from",
    "RunConfig.average",
    "RunConfig.branch",
    "DataConfig.store",
    "DataConfig.unique_tokens",
    "SourceConfig.unique_tokens",
    "PrefixLMConfig.prefix_fraction",
    "SpanCorruptionConfig.input_tokens",
    "DenoiserConfig.mean_span_tokens",
    "DecoderConfig.max_positions",
    "DecoderConfig.rope_scaling",
    "DecoderConfig.sliding_window",
    "DecoderConfig.vocab_size",
    "DecoderConfig.mup_base_width",
    "DecoderConfig.moe",
    "MoEConfig.capacity_factor",
    "T5Config.vocab_size",
    "T5Config.moe",
    "Scheduled.over",
    "TrainConfig.batch_tokens",
    "TrainConfig.micro_batch_windows",
    "TrainConfig.bucket_elements",
    "EvaluateConfig.patience",
    "CheckpointConfig.keep_every_fraction",
    "CheckpointConfig.mirror",
    "RunConfig.distill",
    # Null is `seed`, which is there.
    "SeedsConfig.order",
    "SeedsConfig.noise",
    "SeedsConfig.weights",
    "SeedsConfig.dropout",
}


def test_fingerprint_counts_a_seed_of_its_own_only_where_it_differs() -> None:
    same, other = resolve("seed=3", "seeds.weights=3"), resolve("seed=3", "seeds.weights=4")
    assert config_fingerprint(same) == config_fingerprint(resolve("seed=3"))
    assert differing_keys(same, resolve("seed=3")) == []
    assert config_fingerprint(other) != config_fingerprint(same)
    assert differing_keys(same, other) == [("seeds.weights", None, 4)]
    assert [other.seed_of(part) for part in ("order", "noise", "weights", "dropout")] == [3, 3, 4, 3]


def null_by_default(kind: Any, found: set[str]) -> set[str]:
    """`Class.field` of all settings below a type whose default is null."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        for name, field in kind.model_fields.items():
            if field.default is None:
                found.add(f"{kind.__name__}.{name}")
            null_by_default(field.annotation, found)
    else:
        for argument in get_args(kind):
            null_by_default(argument, found)
    return found


def test_every_null_is_resolved_or_stands_for_nothing() -> None:
    mixture = validate(RunConfig, {"data": {"sources": {"a": {"store": "a"}}}})
    configs = [resolve(MOE), resolve(*T5), mixture]
    resolved = {key.rpartition(".")[2] for config in configs for key in auto_values(config)}
    derived = {name.rpartition(".")[2] for name in null_by_default(RunConfig, set()) - NOT_DERIVED}
    assert derived == resolved


def test_differing_keys_are_dotted_with_both_values() -> None:
    assert differing_keys(resolve(), resolve("optimizer.lr=0.5", "train.zero_stage=1")) == [
        ("optimizer.lr", 0.001, 0.5)
    ]


def test_schema_describes_every_key() -> None:
    def check(node: dict[str, object]) -> None:
        for name, field in node.get("properties", {}).items():  # type: ignore[attr-defined]
            assert field.get("description") or "$ref" in field, name

    schema = RunConfig.model_json_schema()
    check(schema)
    for definition in schema["$defs"].values():
        check(definition)
    assert yaml.safe_load(yaml.safe_dump(schema)) == schema


def test_sources_come_in_the_order_of_their_names() -> None:
    stores = {"web": {"store": "a"}, "books": {"store": "b", "total_tokens": "4epochs", "order": "same"}}
    config = validate(RunConfig, {"data": {"sources": stores, "cut": "shifted"}})
    turned = validate(RunConfig, {"data": {"sources": dict(reversed(stores.items())), "cut": "shifted"}})
    assert list(config.sources) == list(turned.sources) == ["books", "web"]
    assert config_fingerprint(config) == config_fingerprint(turned)
    assert [(s.order, s.cut, str(s.total_tokens)) for s in config.sources.values()] == [
        ("same", "shifted", "4epochs"),
        ("reshuffle", "shifted", "1epochs"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"data": {"store": "a", "sources": {"b": {"store": "b"}}}}, "not both; set data.store=null"),
        (
            {
                "data": {"sources": {"a": {"store": "a"}, "b": {"store": "b", "cut": "shifted"}}},
                "model": {"family": "t5"},
                "objective": {"name": "span_corruption", "noise": "frozen"},
            },
            "needs data.cut fixed",
        ),
        ({"data": {"sources": {"b": {"store": "b"}}, "unique_tokens": 5}}, "set it for each of data.sources"),
        (
            {"data": {"sources": {"b": {"store": "b"}}}, "train": {"total_tokens": 9}},
            "set total_tokens for each",
        ),
        (
            {"data": {"sources": {"b": {"stor": "b"}}}},
            r"data\.sources\.b\.stor.*Did you mean data\.sources\.b\.store",
        ),
        ({"data": {"store": "a"}, "objective": {"name": "ul3"}}, r"objective\.name: must be one of 'causal'"),
        (
            {"data": {"store": "a"}, "model": {"family": "t5"}, "objective": {"name": "masked_diffusion"}},
            "masked_diffusion needs model.family decoder; t5 was given",
        ),
        (
            {"data": {"store": "a", "document_mask": True}, "objective": {"name": "ul2"}},
            "ul2 needs data.document_mask false",
        ),
        (
            {"data": {"store": "a", "cut": "shifted"}, "objective": {"name": "prefix_lm", "noise": "frozen"}},
            "needs data.cut fixed",
        ),
        (
            {
                "data": {"store": "a", "cut": "repacked"},
                "objective": {"name": "prefix_lm", "noise": "frozen"},
            },
            "needs data.cut fixed: with repacked cuts no window repeats",
        ),
        (
            {"data": {"store": "a", "cut": "repacked", "order": "mixed"}},
            "data.cut repacked needs data.order reshuffle or same",
        ),
        (
            {"data": {"sources": {"a": {"store": "a", "order": "mixed"}}, "cut": "repacked"}},
            "data.cut repacked needs data.order reshuffle or same",
        ),
        (
            {"data": {"store": "a"}, "objective": {"name": "ul2", "denoisers": []}},
            r"objective\.denoisers.*at least 1 item",
        ),
        (
            {"data": {"store": "a"}, "train": {"total_tokens": "2**20inputs"}},
            "a budget in inputs needs an objective with input tokens that are not targets",
        ),
        (
            {
                "data": {"store": "a", "window_tokens": 61},
                "objective": {"name": "fill_in_the_middle"},
                "model": {"positions": "learned", "max_positions": 64},
            },
            "at most model.max_positions 64 positions; it makes 65",
        ),
        ({"data": {"store": "a"}, "model": {"family": "t5"}}, "needs model.family decoder"),
        (
            {"data": {"store": "a"}, "model": {"family": "gpt"}},
            r"model\.family: must be one of 'decoder', 't5'",
        ),
        (
            {"data": {"store": "a"}, "model": {"family": "t5", "num_layers": 2}},
            r"model\.num_layers: must be a known key",
        ),
        (
            {
                "data": {"store": "a", "window_tokens": 569},
                "model": {"family": "t5"},
                "objective": {"name": "span_corruption", "input_tokens": 512},
            },
            "leave one of the two out",
        ),
    ],
)
def test_validate_explains_contradictions(data: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(RunConfig, data)


def test_window_fills_the_inputs_of_span_corruption() -> None:
    data = {"data": {"store": "a"}, "model": {"family": "t5"}, "objective": {"name": "span_corruption"}}
    config = validate(RunConfig, data)
    assert config.window_tokens == 568
    assert config.example_shape == (512, 114)
    data["data"]["window_tokens"] = 100
    assert validate(RunConfig, data).example_shape == (91, 21)


@pytest.mark.parametrize(
    ("objective", "family", "shape"),
    [
        # R (3, .15): noise 77 in 26 spans; S: 128 hidden in 1; X (3, .5): 256 in 85; (64, .5): 256 in 4.
        ({"name": "ul2"}, "t5", (512 - 77 + 26 + 2, 256 + 85 + 1)),
        ({"name": "ul2"}, "decoder", (0, 463 + 342)),
        ({"name": "span_corruption"}, "decoder", (0, 512 + 114)),
        ({"name": "denoising"}, "t5", (512, 512)),
        ({"name": "denoising"}, "decoder", (0, 1024)),
        ({"name": "prefix_lm"}, "t5", (255, 255)),
        ({"name": "prefix_lm", "prefix_fraction": 0.25}, "t5", (64, 192)),
        ({"name": "prefix_lm"}, "decoder", (0, 256)),
        ({"name": "masked_diffusion"}, "decoder", (0, 256)),
        ({"name": "fill_in_the_middle"}, "decoder", (0, 260)),
        ({"name": "fill_in_the_middle", "rate": 0}, "decoder", (0, 256)),
    ],
)
def test_example_shape_has_room_for_the_largest_example(
    objective: dict[str, Any], family: str, shape: tuple[int, int]
) -> None:
    data = {"data": {"store": "a"}, "model": {"family": family}, "objective": objective}
    assert validate(RunConfig, data).example_shape == shape


@pytest.mark.parametrize(
    ("objective", "family", "budget", "tokens"),
    [
        ({"name": "span_corruption"}, "t5", f"{512 * 10}inputs", 568 * 10),
        ({"name": "span_corruption"}, "t5", f"{114 * 10}targets", 568 * 10),
        ({"name": "denoising"}, "t5", f"{512 * 10}targets", 511 * 10),
        ({"name": "causal"}, "decoder", "2**20targets", 2**20),
        ({"name": "prefix_lm"}, "decoder", "2**20 targets", 2**21),
        ({"name": "fill_in_the_middle"}, "decoder", f"{258 * 10}targets", 256 * 10),
    ],
)
def test_budget_in_inputs_or_targets_is_converted_to_raw_tokens(
    objective: dict[str, Any], family: str, budget: str, tokens: int
) -> None:
    data = {
        "data": {"store": "a"},
        "model": {"family": family},
        "objective": objective,
        "train": {"total_tokens": budget},
    }
    config = validate(RunConfig, data)
    assert config.sources["data"].total_tokens.tokens == tokens
    mixture = {"sources": {"b": {"store": "b", "total_tokens": budget}}}
    config = validate(RunConfig, data | {"data": mixture, "train": {}})
    assert config.sources["b"].total_tokens.tokens == tokens
