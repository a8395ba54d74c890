"""docs/deploy.md, as far as a test can: its commands are understood, its unit and its Dockerfile are sound."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from selfsight.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def block(kind: str) -> str:
    [found] = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return str(found)


def understood(words: list[str]) -> dict[str, object]:
    """The arguments of a command line of selfsight, which is not run."""
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    return dict(bound.arguments)


def test_the_unit_is_one() -> None:
    unit = configparser.ConfigParser(interpolation=None, strict=False)
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(block("ini"))
    program, *words = shlex.split(unit["Service"]["ExecStart"])
    assert program.endswith("/selfsight")
    said = understood(words)
    assert said["heads"] == ("/srv/heads/steel", "/srv/heads/inspect") and said["port"] == 8080
    assert said["state"] == f"/var/lib/{unit['Service']['StateDirectory']}"  # which alone may be written


def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze")
    file = tmp_path / "selfsight.service"
    file.write_text(block("ini").replace("/opt/selfsight/bin/selfsight", sys.executable))
    done = subprocess.run(["systemd-analyze", "verify", str(file)], capture_output=True, text=True, check=False)
    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "selfsight.service" in line]
    assert not complaints


def test_the_dockerfile_is_one() -> None:
    lines = re.sub(r" *\\\n *", " ", block("dockerfile")).splitlines()
    words = [line.partition(" ")[0] for line in lines]
    assert words[0] == "FROM" and set(words) <= {
        "FROM",
        "RUN",
        "COPY",
        "USER",
        "VOLUME",
        "EXPOSE",
        "ENV",
        "HEALTHCHECK",
        "CMD",
    }
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    version = re.search(r"python:3\.(\d+)", lines[0])
    assert version and int(version[1]) >= int(project["requires-python"].removeprefix(">=3."))
    extras = re.search(r"selfsight\[([\w,]+)\]", block("dockerfile"))
    assert extras and set(extras[1].split(",")) <= set(project["optional-dependencies"])
    command = json.loads(next(line for line in lines if line.startswith("CMD")).removeprefix("CMD "))
    said = understood(command[1:])
    assert command[0] == "selfsight" and said["host"] == "0.0.0.0"
    assert f"VOLUME {said['state']}" in lines and f"EXPOSE {said['port']}" in lines
    assert words.index("USER") < words.index("CMD")  # not as root
    check = json.loads(next(line for line in lines if "HEALTHCHECK" in line).partition("CMD ")[2])
    assert check[:2] == ["python", "-c"] and compile(check[2], "check", "exec") and f":{said['port']}/ready" in check[2]


def test_what_prometheus_is_told_is_yaml_and_its_figures_are_there() -> None:
    [job] = yaml.safe_load(block("yaml"))["scrape_configs"]
    assert job["authorization"]["credentials_file"] in PAGE.split("```yaml")[0]  # the copy that it can read
    from selfsight.deploy.drift import Distance
    from selfsight.deploy.figures import Figures

    figures = Figures(lambda: 0)
    figures.answered("/v1/heads/a/predict", 200, 0.1)
    figures.batch(1)
    figures.decided("a", "good")
    figures.labelled("a")
    figures.drifted("a", Distance(0.1, 0.1, 2.0, 1.4, 0.05, 64))
    figures.heads([("a", "d")])
    text = figures.text().decode()
    named = re.findall(r"^\| (`.*?`) \|", PAGE, flags=re.MULTILINE)
    assert len(named) > 5
    for name in [name for cell in named for name in re.findall(r"`(\w+)`", cell)]:
        assert re.search(rf"^{name}(_\w+)?({{| )", text, re.MULTILINE), name
