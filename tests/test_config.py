from dataclasses import dataclass, field
from pathlib import Path

import pytest

from shards.errors import ConfigError, UserError
from xmodal.config import known_keys, load_config
from xmodal.labelling.config import LabelConfig
from xmodal.training.config import TrainConfig

WHOLE = "view: v\noutput: o\n"


def load(config_class, arguments):
    return load_config(config_class, arguments, command="xmodal verb", description="A verb.")


def refusal(config_class, arguments) -> tuple[str, str]:
    """The two lines that a user reads."""
    with pytest.raises(UserError) as caught:
        load(config_class, arguments)
    what, remedy = str(caught.value).splitlines()
    return what, remedy.strip()


@pytest.fixture
def config(tmp_path) -> Path:
    return tmp_path / "config.yaml"


def test_a_file_gives_the_settings_and_the_command_line_overrides_them(config):
    config.write_text(WHOLE + "epochs: 3\noptimizer:\n  lr: 3e-4\n  weight_decay: 0\n")
    loaded = load(TrainConfig, ["--config", str(config), "--optimizer.lr", "1e-5", "--epochs=7"])
    assert (loaded.view, loaded.epochs) == ("v", 7)
    assert (loaded.optimizer.lr, loaded.optimizer.weight_decay) == (1e-5, 0)
    assert loaded.optimizer.max_grad_norm == TrainConfig(view="v", output="o").optimizer.max_grad_norm


def test_of_two_files_the_later_one_wins_and_keeps_what_it_does_not_name(config, tmp_path):
    other = tmp_path / "other.yaml"
    config.write_text(WHOLE + "epochs: 3\nseed: 5\n")
    other.write_text("epochs: 4\n")
    loaded = load(TrainConfig, [f"--config={config}", "--config", str(other)])
    assert (loaded.epochs, loaded.seed) == (4, 5)


def test_a_section_without_settings_and_an_optional_setting_without_value_keep_their_defaults(config):
    config.write_text("posts: p\ndataset: d\nfetch:\nbase_url:\n")
    assert load(LabelConfig, ["--config", str(config)]) == LabelConfig(posts="p", dataset="d")


@pytest.mark.parametrize(
    ("text", "what", "remedy"),
    [
        ("epoch: 3\n", "epoch: no such setting", "did you mean epochs?"),
        ("optimizer:\n  lrr: 1\n", "optimizer.lrr: no such setting", "did you mean optimizer.lr?"),
        ("optimiser:\n  lr: 1\n", "optimiser.lr: no such setting", "did you mean optimizer.lr?"),
        ("zzz: 3\n", "zzz: no such setting", "see `xmodal verb --help`"),
        ("epochs: many\n", "epochs: Expected a int. Got value: many", "--help"),
        ("epochs: 1.5\n", "epochs: Expected a int. Got value: 1.5", "--help"),
        ("optimizer:\n  lr: fast\n", "optimizer.lr: Expected a float. Got value: fast", "--help"),
        ("loss:\n  kind: mean\n", "loss.kind: Expected a Literal['soft', 'hard', 'mixed']. Got value: mean", "--help"),
        ("optimizer: 5\n", "optimizer: 5 is not a section", "change optimizer"),
        ("optimizer: [1]\n", "optimizer: [1] is not a section", "change optimizer"),
        ("optimizer: adam\n", "optimizer: ", "--help"),
        ("epochs:\n", "epochs: None is no value", "change epochs"),
        ("optimizer:\n  lr:\n", "optimizer.lr: None is no value", "--optimizer.lr VALUE"),
        ("epochs: 0\n", "epochs: 0 must be at least 1", "change epochs in the config, or give --epochs VALUE"),
        ("optimizer:\n  lr: 3e4\n", "optimizer.lr: 30000.0 is out of range (0, 1]", "--optimizer.lr VALUE"),
        ("loss:\n  temperature: 0\n", "loss.temperature: 0.0 must be above 0", "--loss.temperature VALUE"),
    ],
)
def test_a_wrong_setting_in_a_file_is_told_by_file_key_value_and_rule(config, text, what, remedy):
    config.write_text(WHOLE + text)
    first, second = refusal(TrainConfig, ["--config", str(config)])
    assert first.startswith(f"{config}: {what}")
    assert remedy in second


@pytest.mark.parametrize(
    ("arguments", "what", "remedy"),
    [
        (["--epoch", "3"], "epoch: no such setting", "did you mean epochs?"),
        (["--optimizer.lrr=3"], "optimizer.lrr: no such setting", "did you mean optimizer.lr?"),
        (["--output", "s3://b/run"], "output: 's3://b/run' must be a folder, not a URL", "--output VALUE"),
        (["--epochs", "many"], "epochs: Expected a int. Got value: many", "--help"),
        (["--optimizer.lr=fast"], "optimizer.lr: Expected a float. Got value: fast", "--help"),
        (["--optimizer.lr", "30000"], "optimizer.lr: 30000.0 is out of range (0, 1]", "--optimizer.lr VALUE"),
        (["--optimizer.lr=0"], "optimizer.lr: 0.0 is out of range (0, 1]", "--optimizer.lr VALUE"),
        (["--config", "/none/config.yaml"], "config: File does not exist: '/none/config.yaml'", "--help"),
    ],
)
def test_a_wrong_setting_on_the_command_line_is_told_as_one(config, arguments, what, remedy):
    config.write_text(WHOLE)
    first, second = refusal(TrainConfig, ["--config", str(config), *arguments])
    assert first.startswith(f"command line: {what}")
    assert remedy in second


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "holds no settings"),
        (b"- a\n- b\n", "holds no settings"),
        (b"just words\n", "holds no settings"),
        (b"view: [1, 2\noutput: o\n", "line 2"),
        (b"view: v\n\toutput: o\n", "line 2"),
        (b"\xff\xfe\x00\x01", "utf-8"),
        (b"\x00\x01", "not allowed"),
        (b"view: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
    ],
)
def test_a_file_that_is_no_config_is_told_by_its_name(config, content, problem):
    config.write_bytes(content)
    first, _ = refusal(TrainConfig, ["--config", str(config)])
    assert first.startswith(f"{config}: ")
    assert problem in first


def test_a_setting_that_must_be_given_is_told_by_its_name(config):
    config.write_text("output: o\n")
    assert refusal(TrainConfig, ["--config", str(config)])[0] == f"{config}: view: not given"
    first, second = refusal(TrainConfig, [])
    assert first == "command line: view, output: not given"
    assert "--view VALUE" in second


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Within."""

    size: int = 1
    """How large."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("size", self.size, "must be at least 1")


@dataclass(frozen=True, kw_only=True)
class Middle:
    """Between."""

    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Around."""

    middle: Middle = field(default_factory=Middle)


def test_a_value_out_of_range_is_told_by_its_whole_path_however_deep(config):
    config.write_text("middle:\n  inner:\n    size: -2\n")
    assert refusal(Outer, ["--config", str(config)])[0] == f"{config}: middle.inner.size: -2 must be at least 1"
    first, _ = refusal(Outer, ["--middle.inner.size", "0"])
    assert first == "command line: middle.inner.size: 0 must be at least 1"


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Names, and things with a size."""

    items: list[str | Middle]
    """Either."""


def test_a_list_may_hold_texts_and_sections(config, capsys):
    config.write_text("items:\n  - plain\n  - inner: {size: 3}\n")
    loaded = load(Listing, ["--config", str(config)])
    assert loaded == Listing(items=["plain", Middle(inner=Inner(size=3))])
    with pytest.raises(SystemExit):
        load(Listing, ["--config", str(config), "--print_config"])
    config.write_text(capsys.readouterr().out)
    assert load(Listing, ["--config", str(config)]) == loaded


@pytest.mark.parametrize(
    ("items", "what"),
    [
        ("[plain, 3]", "items[1]: 3 is not a section"),
        ("[plain, [plain]]", "items[1]: ['plain'] is not a section"),
        ("[{inner: {size: 0}}]", "items[0].inner.size: 0 must be at least 1"),
        ("[plain, {inner: {size: much}}]", "items[1].inner.size: Expected a int. Got value: much"),
        ("[{outer: 3}]", "items[0].outer: no such setting"),
        ("plain", "items: Expected a list. Got value: plain"),
    ],
)
def test_of_texts_and_sections_the_one_that_cannot_be_is_named(items, what):
    assert refusal(Listing, ["--items", items])[0].startswith(f"command line: {what}")


def test_the_known_keys_are_all_settings_with_their_sections():
    assert known_keys(Outer) == ["middle", "middle.inner", "middle.inner.size"]


def test_a_printed_config_gives_the_same_settings_again(config, capsys):
    with pytest.raises(SystemExit):
        load(TrainConfig, ["--view", "v", "--output", "o", "--optimizer.lr", "0.5", "--print_config"])
    config.write_text(capsys.readouterr().out)
    assert load(TrainConfig, ["--config", str(config)]).optimizer.lr == 0.5
