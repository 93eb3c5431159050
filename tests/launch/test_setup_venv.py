"""The environment is made by a Python that can, where there are wheels; else a line says why."""

from pathlib import Path
import shutil
import subprocess
import tomllib

from packaging.requirements import Requirement
import pytest

ROOT = Path(__file__).parents[2]
# A Python of a version, that can make environments or not; those that it makes can install or not.
_PYTHON = """#!/bin/bash
case "$2" in
  import*) echo "{minor}{bare}" ;;
  *) if [[ "$1" == --version ]]; then echo "Python 3.{minor}"; exit; fi
     [[ "$*" == "-m venv --clear .venv" ]] || exit 9
     mkdir -p .venv/bin
     pip='[[ "$*" == *--version ]] || echo "pip $*" >> log'
     printf '#!/bin/bash\\n%s\\n' "$pip" > .venv/bin/python
     chmod +x .venv/bin/python ;;
esac
"""


class Machine:
    """A checkout with the script, and a PATH with the Pythons that a test puts there."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.bin.mkdir()
        (folder / "launch").mkdir()
        shutil.copy(ROOT / "launch" / "setup_venv.sh", folder / "launch")
        shutil.copy(ROOT / "pyproject.toml", folder)
        for name in ("bash", "cksum", "grep", "sed", "dirname", "mkdir", "chmod", "readlink"):
            (self.bin / name).symlink_to(shutil.which(name))
        self.system("Linux", "x86_64")

    def tool(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def system(self, name: str, machine: str) -> None:
        words = f'#!/bin/bash\nif [[ "$1" == -s ]]; then echo {name}; else echo {machine}; fi\n'
        self.tool("uname", words)

    def python(self, name: str, minor: int, bare: bool = False) -> None:
        text = _PYTHON.replace("{minor}", str(minor))
        self.tool(name, text.replace("{bare}", " bare" if bare else ""))

    def run(self, *arguments: str, **environment: str) -> tuple[int, str]:
        done = subprocess.run(
            [self.bin / "bash", "launch/setup_venv.sh", *arguments],
            cwd=self.folder,
            env={"PATH": str(self.bin), **environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path):
    return Machine(tmp_path)


def test_of_several_pythons_one_that_works_is_taken(machine):
    machine.tool("python3.11", "#!/bin/bash\necho 'command not found' >&2; exit 127\n")
    machine.python("python3.12", 12, bare=True)
    machine.python("python3.13", 13)
    machine.python("python3", 14)
    status, said = machine.run("test")
    assert (status, said.splitlines()[0]) == (0, "making .venv with Python 3.13")
    installed, imported = (machine.folder / "log").read_text().splitlines()
    assert installed.endswith("-e .[test]")
    assert imported.startswith("pip -c import ")
    # The second call has nothing to do.
    assert machine.run("test") == (0, "")


@pytest.mark.parametrize(
    ("pythons", "said"),
    [
        ({}, "Python 3.11 to 3.13 is needed; set PYTHON to one"),
        ({"python3": (14, False)}, "Python 3.11 to 3.13 is needed (python3 is Python 3.14); set"),
        ({"python3": (10, False)}, "Python 3.11 to 3.13 is needed (python3 is Python 3.10); set"),
        ({"python3": (12, True)}, "sudo apt-get install python3.12-venv); set PYTHON to one"),
    ],
)
def test_without_one_a_line_says_what_is_missing_and_nothing_is_left(machine, pythons, said):
    for name, (minor, bare) in pythons.items():
        machine.python(name, minor, bare)
    status, output = machine.run()
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith("error: ")
    assert said in output
    assert not (machine.folder / ".venv").exists()


def test_the_python_that_is_asked_for_is_taken_or_refused(machine):
    machine.python("python3.11", 11)
    machine.python("mine", 12)
    machine.python("new", 14)
    status, output = machine.run(PYTHON="new")
    assert (status, output.count("\n")) == (1, 1)
    assert "new is Python 3.14" in output
    assert machine.run(PYTHON="mine")[1].startswith("making .venv with Python 3.12")


@pytest.mark.parametrize("left", ["", "#!/bin/bash\nexit 1\n"])
def test_half_an_environment_is_made_again(machine, left):
    machine.python("python3.11", 11)
    (machine.folder / ".venv" / "bin").mkdir(parents=True)
    if left:
        broken = machine.folder / ".venv" / "bin" / "python"
        broken.write_text(left)
        broken.chmod(0o755)
    status, output = machine.run()
    assert (status, output.splitlines()[0]) == (0, "making .venv with Python 3.11")


def test_an_environment_of_others_is_not_cleared(machine, tmp_path_factory):
    machine.python("python3.11", 11)
    shared = tmp_path_factory.mktemp("shared")
    (shared / "kept").touch()
    (machine.folder / ".venv").symlink_to(shared)
    status, output = machine.run()
    assert (status, output.count("\n")) == (1, 1)
    assert output.startswith(f"error: .venv is a link to {shared}")
    assert (shared / "kept").exists()


def test_a_failed_installation_is_said_and_tried_again(machine):
    machine.python("python3.11", 11)
    machine.run()
    (machine.folder / ".venv" / "installed-base").unlink()
    python = machine.folder / ".venv" / "bin" / "python"
    # By pip, or with packages that do not fit this machine.
    for works, said in (
        ("*--version", "pip could not install what pyproject.toml names"),
        ("-m*", "what was installed cannot be imported"),
    ):
        python.write_text(f'#!/bin/bash\n[[ "$*" == {works} ]]\n')
        status, output = machine.run()
        assert status == 1
        assert output.splitlines()[-1].startswith(f"error: {said}, see above")
    assert not (machine.folder / ".venv" / "installed-base").exists()


@pytest.mark.parametrize(
    ("name", "processor", "status"),
    [
        ("Linux", "aarch64", 0),
        ("Darwin", "arm64", 0),
        ("Darwin", "x86_64", 1),
        ("Linux", "armv7l", 1),
        ("MINGW64_NT", "x86_64", 1),
    ],
)
def test_a_machine_without_wheels_is_told_before_anything_is_made(machine, name, processor, status):
    machine.python("python3.11", 11)
    machine.system(name, processor)
    found, output = machine.run()
    assert found == status
    if status:
        words = f"error: no JAX or TensorFlow is made for {name} {processor}: Linux on x86_64 or"
        assert (output.startswith(words), output.count("\n")) == (True, 1)
        assert not (machine.folder / ".venv").exists()


def test_readme_and_project_say_the_same_of_python():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=3.11,<3.14"
    classifiers = [f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)]
    assert [c for c in project["classifiers"] if " :: 3." in c] == classifiers
    readme = (ROOT / "README.md").read_text()
    assert "Python 3.11 to 3.13" in readme
    # One TensorFlow for every platform that the script lets through.
    markers = [one for one in project["dependencies"] if one.startswith("tensorflow")]
    for system, processor in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64")):
        platform = {"sys_platform": system, "platform_machine": processor}
        fitting = [r for r in map(Requirement, markers) if r.marker.evaluate(platform)]
        assert len(fitting) == 1
        assert (fitting[0].name == "tensorflow-cpu") == (processor == "x86_64")
