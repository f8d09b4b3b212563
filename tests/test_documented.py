"""Whatever a user can type is documented, and whatever is documented exists."""

import re
import runpy
import subprocess
import sys

import pytest
from detectron2.config import get_cfg

import rambo_det
from rambo_det.engine.keys import has_key

from .doc_pages import DOCS, PAGES, ROOT, sections, text_of

SECTIONS = dict(sections(DOCS / "commands.md"))
TARGETS, VARIABLES = SECTIONS.pop("make"), SECTIONS.pop("Environment variables")
FLAG = re.compile(r"(?<![\w-])--[a-z][\w-]*")
ENTRY_POINTS = dict(re.findall(r'"(rambo-\w+) = ([\w.]+):main"', text_of(ROOT / "setup.py")))


def documented_flags(text):
    """Returns the flags in the first column of a section's tables."""
    return set(FLAG.findall("".join(re.findall(r"^\|(.*?)\|", text, re.M))))


def test_every_command_has_a_section_and_every_section_a_command():
    files = sorted((ROOT / "tools").glob("*.py"))
    tools = {f"tools/{f.name}" for f in files if '__name__ == "__main__"' in f.read_text()}
    named = re.findall(r"`(?:python )?(\S+)`", "\n".join(SECTIONS))
    assert set(named) == tools | set(ENTRY_POINTS)
    assert all((ROOT / f"{m.replace('.', '/')}.py").is_file() for m in ENTRY_POINTS.values())


@pytest.mark.parametrize("heading", SECTIONS)
def test_the_flags_of_a_command_are_those_of_its_section(heading, monkeypatch, capsys):
    (tool,) = re.findall(r"`python (\S+)`", heading)
    monkeypatch.setattr(sys, "argv", [tool, "--help"])
    monkeypatch.setenv("COLUMNS", "400")  # puts an option and its help on one line
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / tool), run_name="__main__")
    assert ended.value.code == 0
    # Usage and description precede the options. Two spaces separate an option from its help.
    options = re.split(r"^options:$", capsys.readouterr().out, flags=re.M)[1]
    names = [line.strip().split("  ")[0] for line in options.splitlines()]
    existing = {flag for name in names if name.startswith("-") for flag in FLAG.findall(name)}
    wanted = documented_flags(SECTIONS[heading])
    if "flags are the same" in SECTIONS[heading]:
        (train,) = (text for other, text in SECTIONS.items() if "tools/train_net.py" in other)
        wanted = documented_flags(train) - set(re.findall(r"but for `(.+?)`", SECTIONS[heading]))
    assert existing - {"--help"} == wanted


def test_every_make_target_is_documented_and_exists():
    makefile = text_of(ROOT / "Makefile")
    targets = set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split())
    assert targets == set(re.findall(r"^([a-z]+):", makefile, re.M))
    assert set(re.findall(r"^\| `make ([a-z]+)` \|", TARGETS, re.M)) == targets
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(re.findall(r"^make ([a-z]+) ", shown.stdout, re.M)) == targets - {"help"}
    made = re.findall(r"(?:^|`)make ([a-z]+)", "\n".join(map(text_of, PAGES)), re.M)
    assert set(made) <= targets


@pytest.mark.parametrize("flag", ["", "--resume", "--eval-only"])
def test_make_train_starts_anew_unless_it_is_to_go_on(flag):
    command = ["make", "-n", "train", "PYTHON=python", f"ARGS={flag} SEED 1"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (line,) = [line for line in shown.splitlines() if "train_net.py" in line]
    assert line.endswith(f"{flag} SEED 1") and ("--fresh" in line) == (flag == "")


def test_every_environment_variable_is_documented_and_exists():
    files = [*(ROOT / "rambo_det").rglob("*.py"), *(ROOT / "tests").rglob("*.py")]
    sources = "".join(text_of(file) for file in sorted(files))
    documented = set(re.findall(r"^\| `(\w+)` \|", VARIABLES, re.M))
    read = set(re.findall(r"environ(?:\.get\(|\[)\"(RAMBO_DET_\w+)", sources))
    assert {name for name in documented if name.startswith("RAMBO_DET_")} == read
    assert all(re.search(rf"\W{name}\W", sources) for name in documented)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_name_in_a_page_exists(page):
    cfg, text = get_cfg(), text_of(page)
    rambo_det.add_rambo_config(cfg)
    assert set(re.findall(r"MODEL\.RAMBO\.([A-Z]\w+)", text)) <= set(cfg.MODEL.RAMBO)
    for paragraph in re.split(r"\n(?=\n|- )", text):
        if "which only main has" in " ".join(paragraph.split()):
            continue  # a key of another Detectron2 version
        for key in re.findall(r"`((?:MODEL|SOLVER|INPUT|TEST|DATA\w+)\.[\w.]+)", paragraph):
            assert has_key(cfg, key), key
    assert set(re.findall(r"rambo-[a-z]+", text)) <= set(ENTRY_POINTS)
    for name in re.findall(r"\b(?:tools|tests|configs|notebooks|results)/[\w/.]+\.\w+", text):
        assert "_LOSS" in name or (ROOT / name).exists(), name  # LOSS is a placeholder
    known = {flag for section in SECTIONS.values() for flag in FLAG.findall(section)}
    for command in re.findall(r"(?:tools/\w+\.py|rambo-train)((?:[^`\n\\#]|\\\n)*)", text):
        assert set(FLAG.findall(command)) <= known, command
