"""README and docs say what is true: code runs, commands parse, links lead somewhere, tables are current."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from repmlp_cli import main, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A command as a page shows it: at the start of an indented or fenced line, up to a comment.
COMMAND = re.compile(r"^(?:    |\$ )?((?:[A-Z_]+=\S+ )?repmlp [a-z].*?)(?:  +#.*)?$", re.MULTILINE)


def commands(text: str) -> list[str]:
    code = "\n".join(re.findall(r"```(?:bash|sh|console|)\n(.*?)```", text, re.DOTALL))
    indented = "\n".join(line for line in text.splitlines() if line.startswith("    "))
    joined = f"{code}\n{indented}".replace("\\\n", " ")
    return [match.strip() for match in COMMAND.findall(joined)]


def ids(path):
    return path.name if isinstance(path, Path) else None


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_on_a_page_parses(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    for line in commands(page.read_text()):
        for command in re.split(r" & | && |; ", line):
            words = [word for word in shlex.split(command, comments=True) if not re.match(r"[A-Z_]+=", word)]
            if words and words[0] == "repmlp" and not {"wait", "..."} & set(words) and "-h" not in words:
                parse(words[1:])


def test_the_pages_have_commands_and_a_wrong_one_is_found():
    assert sum(len(commands(page.read_text())) for page in PAGES) > 20
    (command,) = commands("    repmlp train --no-such-flag 3 runs/x   # comment\n")
    with pytest.raises(SystemExit):
        parse(shlex.split(command)[1:])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_of_a_page_to_a_file_leads_to_one(page):
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_code_of_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for _ in range(2):  # also a second time
        exec(code, {})
    assert "equal" in capsys.readouterr().out


@pytest.mark.slow
def test_the_table_of_networks_is_current():
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "benchmarks" / "models.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.page(script.PAGE.read_text()) == script.PAGE.read_text()


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    text = (ROOT / "docs" / "start.md").read_text()
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.strip().splitlines()]
    assert len(lines) > 10
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, line
    shown = capsys.readouterr().out
    accuracies = [float(value) for value in re.findall(r"([\d.]+)% top-1", shown)]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1] > 60  # the deploy folder, and the exported file
