"""README and docs say what is true: code runs, commands parse, links lead somewhere, tables are current."""

import importlib.util
import json
import re
import shlex
from pathlib import Path

import pytest
import timm

import repmlp
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


def other_commands(text: str) -> list[str]:
    """Indented lines that start with python, make or torchrun, without comments and line breaks."""
    joined = text.replace("\\\n", " ")
    return re.findall(r"^    (?:srun )?((?:python|make|torchrun) .*?)(?:  +#.*)?$", joined, re.MULTILINE)


def problem(line: str) -> str:
    """Why a command that is not ours cannot be right; "" if nothing is wrong."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        targets = re.findall(r"^(\S+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "" if words[1] in targets else f"make has no {words[1]}"
    if words[0] == "torchrun":
        arguments = words[words.index("repmlp_cli") + 1 :]
        if "$what" not in arguments:
            parse(arguments)
    elif words[1] == "-c":
        compile(words[2], line, "exec")
    elif not (ROOT / words[1]).exists() and not words[1].endswith(".check.py"):  # export writes that
        return f"there is no {words[1]}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_other_command_and_every_code_block_can_be_right(page, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = page.read_text()
    assert [line for line in map(problem, other_commands(text)) if line] == []
    for language, code in re.findall(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        assert language in ("python", "sh", "json", "{toctree}", ""), f"no test reads {language}"
        if language == "python":
            compile(code, page.name, "exec")
        if language == "json":
            json.loads(code)
        assert language or not re.search(r"^(\$ )?(repmlp|python|make) ", code, re.MULTILINE), "say that it is sh"


def test_a_wrong_line_of_another_program_is_found():
    assert sum(len(other_commands(page.read_text())) for page in PAGES) > 10
    for line in ("make tset", "python benchmarks/nothing.py"):
        assert problem(line)
    with pytest.raises(SystemExit):
        problem("torchrun --nproc_per_node 2 -m repmlp_cli train --no-such-flag 1 runs/x")
    with pytest.raises(SyntaxError):
        problem("python -c 'import'")


def test_the_code_about_equivalence_runs(capsys):
    compare, exactly = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "equivalence.md").read_text(), re.DOTALL)
    names = {"repmlp": repmlp, "model": timm.create_model("repmlp_cifar", channels=(4,), img_size=16).eval()}
    exec(compare, names)
    assert names["report"].first_difference is None
    exec(exactly, names)
    assert "equal within" in capsys.readouterr().out


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
