"""Whatever a user can type is documented, and whatever is documented exists."""

import ast
import re
import runpy
import subprocess
import sys

import pytest

pytest.importorskip("detectron2")

from detectron2.config import get_cfg

import rambo_det

from .doc_pages import DOCS, PAGES, ROOT, sections, text_of

OTHER = ("make", "Environment variables")
COMMANDS = [(h, t) for h, t in sections(DOCS / "commands.md") if h not in OTHER]
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")


def tools():
    """The scripts of tools/ that can be run, by their path in the clone."""
    files = sorted((ROOT / "tools").glob("*.py"))
    return [f"tools/{f.name}" for f in files if '__name__ == "__main__"' in f.read_text()]


def entry_points():
    """The console commands of setup.py: name to module."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    lists = [
        ast.literal_eval(value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "console_scripts"
    ]
    return dict(re.fullmatch(r"(\S+) = ([\w.]+):main", line).groups() for line in lists[0])


def has_flags(tool):
    """Whether the script reads a command line: its own, or that of a module of rambo_det.cli."""
    text = (ROOT / tool).read_text()
    return "ArgumentParser" in text or "rambo_det.cli." in text


def test_every_command_has_a_section_and_every_section_a_command():
    named = {
        name for heading, _ in COMMANDS for name in re.findall(r"`(?:python )?(\S+)`", heading)
    }
    assert named == {*tools(), *entry_points()}


def test_an_entry_point_is_a_module_that_exists():
    for name, module in entry_points().items():
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file(), name


@pytest.mark.parametrize("heading, text", COMMANDS, ids=[h for h, _ in COMMANDS])
def test_the_flags_of_a_command_are_those_of_its_section(heading, text, monkeypatch, capsys):
    (tool,) = re.findall(r"`python (\S+)`", heading)
    documented = set(FLAG.findall("".join(re.findall(r"^\|(.*?)\|", text, re.M))))
    if not has_flags(tool):
        assert not documented
        return
    monkeypatch.syspath_prepend(str(ROOT / "tools"))  # as Python does that runs a script there
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    monkeypatch.setenv("COLUMNS", "400")  # an option and what it does on one line
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    assert ended.value.code == 0
    # Before the options are usage and description; after two spaces is what an option does.
    options = re.split(r"^options:$", capsys.readouterr().out, flags=re.M)[1]
    names = [line.strip().split("  ")[0] for line in options.splitlines()]
    existing = {flag for name in names if name.startswith("-") for flag in FLAG.findall(name)}
    no_table = set() if "no flags" in text else flags_of_train_net()
    no_table -= set(re.findall(r"but for `(--[\w-]+)`", text))
    assert existing - {"--help"} == (documented or no_table)


def flags_of_train_net():
    """A section without a table is that of a command with the flags of train_net.py."""
    (text,) = [t for h, t in COMMANDS if "tools/train_net.py" in h]
    return set(FLAG.findall("".join(re.findall(r"^\|(.*?)\|", text, re.M))))


def test_every_make_target_is_documented_and_exists():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert targets == set(re.findall(r"^([a-z]+):", makefile, re.M))
    table = dict(sections(DOCS / "commands.md"))["make"]
    assert set(re.findall(r"^\| `make ([a-z]+)` \|", table, re.M)) == targets
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^make ([a-z]+) ", shown.stdout, re.M)) == targets - {"help"}
    for page in PAGES:
        for made in re.findall(r"(?:^|`)make ([a-z]+)", text_of(page), re.M):
            assert made in targets, f"{page.name}: make {made}"


@pytest.mark.parametrize("flag", ["", "--resume", "--eval-only"])
def test_make_train_starts_anew_unless_it_is_to_go_on(flag):
    command = ["make", "-n", "train", "PYTHON=python", f"ARGS={flag} SEED 1"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if "train_net.py" in line]
    assert line.endswith(f"{flag} SEED 1") and ("--fresh" in line) == (flag == "")


def test_every_environment_variable_is_documented_and_exists():
    table = dict(sections(DOCS / "commands.md"))["Environment variables"]
    sources = "".join(text_of(file) for file in sorted((ROOT / "rambo_det").rglob("*.py")))
    documented = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(RAMBO_DET_\w+)", sources))
    assert {name for name in documented if name.startswith("RAMBO_DET_")} == read
    assert all(re.search(rf"\W{name}\W", sources) for name in documented)


def exists(cfg, key):
    node = cfg
    for part in key.split("."):
        if part not in node:
            return False
        node = node[part]
    return True


def test_every_name_in_a_page_exists():
    cfg = get_cfg()
    rambo_det.add_rambo_config(cfg)
    for page in PAGES:
        text = text_of(page)
        assert set(re.findall(r"MODEL\.RAMBO\.([A-Z]\w+)", text)) <= set(cfg.MODEL.RAMBO), page.name
        for paragraph in re.split(r"\n(?=\n|- )", text):
            # A key of another Detectron2 than the one here is named as such.
            elsewhere = "which only main has" in " ".join(paragraph.split())
            for key in re.findall(
                r"`((?:MODEL|SOLVER|INPUT|TEST|DATASETS|DATALOADER)\.[\w.]+)", paragraph
            ):
                assert elsewhere or exists(cfg, key), f"{page.name}: {key}"
        for name in re.findall(r"rambo-[a-z]+", text):
            assert name in entry_points(), page.name
        for name in re.findall(r"\b(?:tools|tests|configs|notebooks|results)/[\w/.]+\.\w+", text):
            # LOSS and SEED stand for something in the README's results.
            assert "LOSS" in name or (ROOT / name).exists(), f"{page.name}: {name}"


def test_the_flags_in_the_pages_exist():
    known = {flag for _, text in COMMANDS for flag in FLAG.findall(text)}
    for page in PAGES:
        for command in re.findall(
            r"(?:tools/\w+\.py|rambo-train)((?:[^`\n\\#]|\\\n)*)", text_of(page)
        ):
            assert set(FLAG.findall(command)) <= known, f"{page.name}: {command}"
