"""A flag counts once, and ~ is the home folder, in every command."""

from pathlib import Path
import re

from absl import flags
import pytest

from data_pipeline import command_line
from data_pipeline.errors import UserError
from shortcut_tpu.cli import config as config_lib

ROOT = Path(__file__).parents[2]


@pytest.fixture
def parse(monkeypatch):
    """What a command with a few flags of each kind makes of its arguments."""

    def parsed(*arguments: str) -> flags.FlagValues:
        values = flags.FlagValues()
        monkeypatch.setattr(command_line.flags, "FLAGS", values)
        flags.DEFINE_string("source", None, "", flag_values=values)
        flags.DEFINE_string("output", None, "", flag_values=values)
        flags.DEFINE_bool("flips", False, "", flag_values=values)
        flags.DEFINE_multi_string("workdir", None, "", flag_values=values)
        command_line.parse_flags(["program", *arguments])
        return values

    monkeypatch.setenv("HOME", "/home/me")
    return parsed


@pytest.mark.parametrize(
    "arguments",
    [
        # As bash expands --source=webdataset:train-{0000..0002}.tar.
        [f"--source=webdataset:train-000{n}.tar" for n in range(3)],
        ["--source=a", "--output=o", "-source=a"],
        ["--source", "a", "--source=b"],
        ["--source", "--output=x", "--source=b"],
        ["--flips", "--noflips"],
        ["--flips", "--flips=true"],
    ],
)
def test_a_flag_given_twice_is_refused(parse, arguments):
    with pytest.raises(UserError, match="--(source|flips) is given twice.*not quoted"):
        parse(*arguments)


def test_an_override_given_twice_is_refused(parse):
    with pytest.raises(UserError, match=r"--config.seed is given twice, 1 and 2"):
        parse("--config.seed=1", "--config.seed=2")


def test_a_flag_of_several_values_may_be_given_several_times(parse):
    values = parse("--workdir=a", "--workdir=b", "--source", "--source", "--flips")
    assert values["workdir"].value == ["a", "b"]
    assert (values["source"].value, values["flips"].value) == ("--source", True)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("~", "/home/me"),
        ("~/latents", "/home/me/latents"),
        ("imagefolder:~/photos", "imagefolder:/home/me/photos"),
        ("sd-vae-ft-mse:~/vae", "sd-vae-ft-mse:/home/me/vae"),
        ("gs://bucket/~/x", "gs://bucket/~/x"),
        ("a~b/c", "a~b/c"),
        ("~about", "~about"),
    ],
)
def test_a_leading_tilde_is_the_home_folder(parse, given, expected):
    assert parse(f"--output={given}")["output"].value == expected
    assert parse("--output", given)["output"].value == expected
    assert command_line.expand_home(f"--config.data.path={given}") == (
        f"--config.data.path={expected}"
    )


def test_a_home_of_nobody_is_refused(parse):
    with pytest.raises(UserError, match="there is no home folder ~nobody-has-this-name"):
        parse("--output=~nobody-has-this-name/latents")


def test_paths_in_config_files_begin_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.py").write_text(
        "from configs import digits\n\n\ndef get_config():\n"
        "    config = digits.get_config()\n"
        "    config.data.update(path='~/records', autoencoder='kl:~/vae')\n"
        "    return config\n"
    )
    config = config_lib.load(f"{tmp_path}/mine.py")
    assert config.data.path == f"{tmp_path}/records"
    assert config.data.autoencoder == f"kl:{tmp_path}/vae"
    config_lib.save(config, tmp_path / "run")
    written = (tmp_path / "run" / "config.json").read_text()
    (tmp_path / "run" / "config.json").write_text(written.replace(f"{tmp_path}/rec", "~/rec"))
    assert config_lib.restore(tmp_path / "run").data.path == f"{tmp_path}/records"


def test_every_command_parses_its_flags_so():
    """None calls absl's own parser, which lets the last of several flags win."""
    started = [
        line.strip()
        for folder in ("data_pipeline", "shortcut_tpu", "launch", "tests/benchmarks")
        for path in (ROOT / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if re.match(r"\s+app\.run\(", line)
    ]
    assert len(started) >= 4
    assert all(
        re.search(r"flags_parser=exit_on_user_error\((parse_flags|_parse)\)", line)
        for line in started
    )


def test_help_has_flags_under_the_titles_of_their_groups(monkeypatch):
    found = flags.FlagValues()
    monkeypatch.setattr(command_line.flags, "FLAGS", found)
    monkeypatch.setattr(command_line, "_groups", {})

    def define(name):
        flags.DEFINE_string(name, None, f"What {name} is.", found, module_name="launch.some")

    define("workdir")
    with command_line.flag_group("Which weights"):
        define("step")
    define("output")
    lines = list(command_line._flag_lines())
    assert lines[:4] == [
        "  --workdir  What workdir is.",
        "  --output   What output is.",
        "\nWhich weights:",
        "  --step     What step is.",
    ]
