"""What the wheel holds, and what a new machine is told to install."""

import configparser
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "pyproject.toml").is_file(), reason="needs the checkout")


def test_the_wheel_holds_the_package_alone_with_its_data(tmp_path):
    pytest.importorskip("hatchling")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT,
                   check=True, capture_output=True)
    names = zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dynloop"}
    assert {"dynloop/report/template.html", "dynloop/nano/prompts.json"} <= set(names)
    assert sum(name.endswith("model.safetensors") for name in names) == 3


def test_every_dependency_is_pinned_in_the_tested_set():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert {re.split(r"[>\[]", name)[0].lower() for name in declared} <= pinned
    assert "torch==2.13.0" in lines


def test_the_readme_and_ci_agree_on_the_test_command():
    assert "pip install tox && tox" in (ROOT / "README.md").read_text()
    assert "pip install --quiet tox && tox" in (ROOT / ".ci" / "run").read_text()


def test_every_tox_environment_says_what_it_is_for():
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    for name in [name for name in tox.sections() if name.startswith("testenv:")]:
        assert "description" in tox[name] or name == "testenv:test", name  # test has that of the base
