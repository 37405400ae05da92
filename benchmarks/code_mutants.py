"""Does the suite notice a wrong line? Change one operator at a time in the code that must be exact, and run its tests.

A mutant is one change of arithmetic, of a comparison, of a constant or of control flow in functional, layers,
conversion or official; texts are left alone. First all tests of these rooms run once, without a mutant, to see which
lines each of them reaches. Then a mutant meets the tests that reach its line, the shortest first. It is killed if one
of them fails or does not end, and survives if none does. The mutants are drawn with a seed, so a run goes on where an
earlier one stopped: results are in results/code_mutants.json. No file of the checkout may change meanwhile.

    python benchmarks/code_mutants.py --mutants 500
"""

import argparse
import ast
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "code_mutants.json"
ROOMS = ("functional", "layers", "conversion", "official")
TESTS = [*(f"tests/{room}" for room in ROOMS), "tests/models", "tests/test_golden.py", "tests/test_own_block.py"]
SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Continue: ast.Break,
    ast.Break: ast.Continue,
}


def mutants(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Apply each change in turn; while the generator waits the tree is changed. Yields the line and what changed."""
    texts = [node for node in ast.walk(tree) if isinstance(node, ast.Raise | ast.JoinedStr)]
    annotations = (getattr(node, name, None) for node in ast.walk(tree) for name in ("annotation", "returns"))
    left = {id(part) for node in (*texts, *annotations) if node is not None for part in ast.walk(node)}
    for node in list(ast.walk(tree)):
        if id(node) in left:
            continue
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPS:
            yield from _swap(node, "op", node.op, SWAPS[type(node.op)](), line)
        if isinstance(node, ast.Compare):
            for i, op in enumerate(node.ops):
                if type(op) in SWAPS:
                    node.ops[i] = SWAPS[type(op)]()  # type: ignore[call-overload]
                    yield line, f"{type(op).__name__} -> {type(node.ops[i]).__name__}"
                    node.ops[i] = op
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            yield from _swap(node, "op", node.op, ast.UAdd(), line)
        if isinstance(node, ast.If | ast.IfExp | ast.While) or (isinstance(node, ast.comprehension) and node.ifs):
            test = node.ifs[0] if isinstance(node, ast.comprehension) else node.test
            opposite = ast.copy_location(ast.UnaryOp(ast.Not(), test), test)
            if isinstance(node, ast.comprehension):
                node.ifs[0] = opposite
                yield test.lineno, "condition -> its opposite"
                node.ifs[0] = test
            else:
                yield from _swap(node, "test", test, opposite, line, "condition -> its opposite")
        if isinstance(node, ast.Constant) and isinstance(value := node.value, bool | int | float):
            other = not value if isinstance(value, bool) else value + 1
            yield from _swap(node, "value", value, other, line, f"{value} -> {other}")
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            for i, statement in enumerate(body if isinstance(body, list) else []):
                if isinstance(statement, ast.Continue | ast.Break):
                    body[i] = ast.copy_location(SWAPS[type(statement)](), statement)  # type: ignore[index]
                    yield statement.lineno, f"{type(statement).__name__} -> its opposite"
                    body[i] = statement  # type: ignore[index]
                elif isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Call):
                    body[i] = ast.copy_location(ast.Pass(), statement)  # type: ignore[index]
                    yield statement.lineno, "call -> nothing"
                    body[i] = statement  # type: ignore[index]


def _swap(
    node: ast.AST, name: str, before: object, after: object, line: int, text: str = ""
) -> Iterator[tuple[int, str]]:
    setattr(node, name, after)
    yield line, text or f"{type(before).__name__} -> {type(after).__name__}"
    setattr(node, name, before)


def sites() -> list[dict[str, object]]:
    """Every mutant: its file, its number in the file, line and change."""
    return [
        {"file": str(path.relative_to(ROOT)), "number": number, "line": line, "change": change}
        for room in ROOMS
        for path in sorted((ROOT / "src" / "repmlp" / room).glob("*.py"))
        for number, (line, change) in enumerate(mutants(ast.parse(path.read_text())))
    ]


def source_of(mutant: dict[str, object]) -> str:
    tree = ast.parse((ROOT / str(mutant["file"])).read_text())
    for number, _ in enumerate(mutants(tree)):
        if number == mutant["number"]:
            return ast.unparse(ast.fix_missing_locations(tree))
    raise IndexError(mutant)


class Clock:
    """A pytest plugin: a test that takes longer than some seconds ends the process."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds

    def pytest_runtest_logstart(self) -> None:
        signal.alarm(self.seconds)


class Reach:
    """A pytest plugin: the lines that each test reaches, and how long it takes.

    What a fixture reaches counts for all tests of its file, since it may be set up for the first of them only.
    """

    def __init__(self, source: Path) -> None:
        self.source = source
        self.rooms = tuple(str(source / "repmlp" / room) + os.sep for room in ROOMS)
        self.now: set[str] = set()
        self.fixtures: dict[str, set[str]] = {}
        self.tests: dict[str, tuple[float, set[str]]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> "Reach | None":
        """Trace the frames of the rooms, line by line."""
        if not frame.f_code.co_filename.startswith(self.rooms):
            return None
        self.now.add(f"{frame.f_code.co_filename}:{frame.f_lineno}")
        return self

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.now = self.fixtures.setdefault(item.nodeid.partition("::")[0], set())
        sys.settrace(self)
        yield
        sys.settrace(None)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        self.now, start = set(), time.perf_counter()
        sys.settrace(self)
        yield
        sys.settrace(None)
        self.tests[item.nodeid] = (time.perf_counter() - start, self.now)

    def save(self, path: Path) -> None:
        """Write the tests, the shortest first, each with its lines as FILE:LINE, from the root."""
        root = str(ROOT) + os.sep
        shortest = sorted(self.tests.items(), key=lambda test: test[1][0])
        rows = {test: lines | self.fixtures[test.partition("::")[0]] for test, (_, lines) in shortest}
        path.write_text(json.dumps({test: sorted(line.removeprefix(root) for line in rows[test]) for test in rows}))


def tests_of(mutant: dict[str, object], reached: dict[str, list[str]]) -> list[str]:
    """The tests that reach the statement of a mutant; all, where it runs at import."""
    tree, line = ast.parse((ROOT / str(mutant["file"])).read_text()), int(str(mutant["line"]))
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= line <= _end(node)]
    lines = {f"{mutant['file']}:{n}" for node in around[-1:] for n in range(node.lineno, _header_end(node) + 1)}
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    inside = any(isinstance(node, functions) and line > _header_end(node) for node in around)
    return [test for test in reached if not inside or not lines.isdisjoint(reached[test])]


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _header_end(node: ast.stmt) -> int:
    """The last line of a simple statement, or of what stands before the body of a compound one."""
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if body else _end(node)


def run_tests(source: Path, tests: list[str], seconds: int, reach: Path | None = None) -> str:
    """Run tests in a fork of this process, which has imported PyTorch already, against a copy of the sources.

    Each test has some seconds. With ``reach`` the lines that they reach are written there.
    """
    if (child := os.fork()) == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        signal.alarm(seconds)
        os.chdir(ROOT)
        sys.path.insert(0, str(source))
        os.environ["PYTHONPATH"] = str(source)
        options = ["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
        options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # timm has imported some plugins already
        seen = Reach(source)
        code = int(pytest.main([*options, *tests], plugins=[Clock(seconds), *([seen] if reach else [])]))
        if reach:
            seen.save(reach)
        os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
    return "survived" if os.WEXITSTATUS(status) == 0 else "killed"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=180, help="for one test")
    arguments = parser.parse_args()
    chosen = random.Random(arguments.seed).sample(sites(), arguments.mutants)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    done = {(row["file"], row["line"], row["change"], row["number"]) for row in results}

    import timm  # noqa: F401  (once, for all forks)
    import torch

    torch.set_num_threads(1)
    if any(name.partition(".")[0] == "repmlp" for name in sys.modules):
        raise RuntimeError("repmlp is imported already: its mutants would not be")
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "lines.json"
        if run_tests(ROOT / "src", TESTS, arguments.seconds, lines) != "survived":
            raise RuntimeError(f"tests fail without a mutant: run pytest {' '.join(TESTS)}")
        reached: dict[str, list[str]] = json.loads(lines.read_text())
    for count, mutant in enumerate(chosen, 1):
        if (mutant["file"], mutant["line"], mutant["change"], mutant["number"]) in done:
            continue
        tests = tests_of(mutant, reached)
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "src"
            shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
            (Path(folder) / str(mutant["file"])).write_text(source_of(mutant))
            mutant["result"] = run_tests(source, tests, arguments.seconds) if tests else "survived"
        mutant["tests"] = len(tests)
        results.append(mutant)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        killed = sum(row["result"] != "survived" for row in results)
        print(f"{count}/{len(chosen)}  {killed} of {len(results)} killed  {mutant}", flush=True)


if __name__ == "__main__":
    main()
