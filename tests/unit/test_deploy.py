"""What is deployed: dependencies with bounds, their lock, and what a public address has switched on."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from app import open_page, parse_arguments, why_deaf
from tests.conftest import ROOT
from ui.runs.backend import Local
from ui.runs.catalogue import Catalogue
from ui.runs.models import LoadedModels

LOCK = ROOT / "requirements-lock.txt"


def requirements(path: Path) -> list[Requirement]:
    """What a file asks for itself."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line and not line.startswith("-r")]


@pytest.mark.parametrize("path", sorted(ROOT.glob("requirements*.txt")), ids=lambda path: path.name)
def test_every_dependency_has_a_lowest_and_a_highest_version(path: Path):
    for one in requirements(path):
        operators = {specifier.operator for specifier in one.specifier}
        assert operators in ({">=", "<"}, {"=="}), str(one)


def test_the_lock_pins_what_is_required_and_names_no_place():
    locked = requirements(LOCK)
    for one in locked:
        [pin] = one.specifier
        assert re.fullmatch(r"[\w.]+", pin.version), f"{one} is for one kind of machine"
        assert one.url is None
    for one in requirements(ROOT / "requirements.txt"):
        pins = [next(iter(other.specifier)).version for other in locked if other.name == one.name.lower()]
        assert pins, one.name
        assert all(pin in one.specifier for pin in pins)
    assert "://" not in LOCK.read_text()
    assert str(ROOT) not in LOCK.read_text()


@pytest.mark.parametrize("space", [False, True])
@pytest.mark.parametrize("flags", [[], ["--host", "0.0.0.0"], ["--share"]])
def test_the_safety_checker_looks_on_where_others_can_come(
    monkeypatch: pytest.MonkeyPatch, space: bool, flags: list[str]
):
    if space:
        monkeypatch.setenv("SPACE_ID", "somebody/something")
    assert parse_arguments(flags).safety_checker == ("on" if space or flags else "off")
    monkeypatch.setenv("SD_SAFETY_CHECKER", "off")
    assert parse_arguments(flags).safety_checker == "off"
    assert parse_arguments([*flags, "--safety-checker", "on"]).safety_checker == "on"


def test_a_slip_in_a_variable_does_not_switch_it_off(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SD_SAFETY_CHECKER", "On")
    with pytest.raises(SystemExit):
        parse_arguments(["--share"])
    assert "SD_SAFETY_CHECKER must be on or off, got 'On'" in capsys.readouterr().err


def test_a_start_without_room_for_files_does_not_blame_the_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "file" / "folder"))
    models = LoadedModels(Catalogue(), device="cpu")
    with pytest.raises(SystemExit) as ended:
        open_page(parse_arguments([]), models, Local(models))
    assert str(ended.value) == (
        f"the page can't write to {tmp_path}/file/folder (Not a directory): "
        "make room there, or name another folder as GRADIO_TEMP_DIR"
    )


def test_the_reason_for_which_nothing_can_listen_is_the_systems():
    with socket.create_server(("127.0.0.1", 0)) as busy:
        assert why_deaf("127.0.0.1", busy.getsockname()[1]) == "Address already in use"
    assert why_deaf("203.0.113.9", 7860) == "Cannot assign requested address"


def test_help_says_one_default_for_each_option_and_the_one_that_holds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("SD_MAX_STEPS", "77")
    with pytest.raises(SystemExit):
        parse_arguments(["--help"])
    options = {" ".join(one.split()) for one in capsys.readouterr().out.split("\n  --")[1:]}
    assert all(one.count("default:") <= 1 for one in options)
    [steps] = [one for one in options if one.startswith("max-steps")]
    assert steps.endswith("default: 77")
    assert parse_arguments([]).limits.max_steps == 77
