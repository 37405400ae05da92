"""Does the suite notice a wrong line? Change one operator at a time in the code that must be exact, and run its tests.

A mutant is one change of arithmetic, of a comparison, of a constant or of control flow in functional, layers,
conversion or official; texts are left alone. First all tests of these rooms run once, without a mutant, to see which
lines each of them reaches. Then a mutant meets the tests that reach its line. It is killed if one of them fails or does
not end, and survives if none does.

One process imports and collects everything once. Each mutant has a fork of it, in which the functions of the changed
file get the code of its mutant; a mutant that acts at import has a fresh process. The mutants are drawn with a seed, so
a run goes on where an earlier one stopped: results are in results/code_mutants.json. No file of the checkout may change
meanwhile.

    python benchmarks/code_mutants.py --lines FILE            # 500 mutants, at most a minute of tests for each
    python benchmarks/code_mutants.py --lines FILE --again    # those that survived meet all tests that reach them
    python benchmarks/code_mutants.py --lines NEW --again tests/x.py    # or those of a file
"""

import argparse
import ast
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "code_mutants.json"
ROOMS = ("functional", "layers", "conversion", "official")
TESTS = [*(f"tests/{room}" for room in ROOMS), *(f"tests/test_{name}.py" for name in ("golden", "frozen", "own_block"))]
NOT_SO = 9  # exit status of a fork whose functions cannot get the code of a mutant
Mutant = dict[str, Any]
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


def sites() -> list[Mutant]:
    """Every mutant: its file, its number in the file, line and change."""
    return [
        {"file": str(path.relative_to(ROOT)), "number": number, "line": line, "change": change}
        for room in ROOMS
        for path in sorted((ROOT / "src" / "repmlp" / room).glob("*.py"))
        for number, (line, change) in enumerate(mutants(ast.parse(path.read_text())))
    ]


def tree_of(mutant: Mutant) -> ast.Module:
    """The file of a mutant with its change; number -1 changes nothing."""
    tree = ast.parse((ROOT / mutant["file"]).read_text())
    for number, _ in enumerate(mutants(tree)):
        if number == mutant["number"]:
            break
    return ast.fix_missing_locations(tree)


def codes_of(tree: ast.Module, file: str) -> dict[tuple[str, str, int], CodeType]:
    """The code of every function of a file, by path, name and first line."""
    found, left = {}, [compile(tree, file, "exec")]
    while left:
        code = left.pop()
        found[code.co_filename, code.co_name, code.co_firstlineno] = code
        left += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def become(mutant: Mutant) -> None:
    """Give all functions of this process the code of a mutant."""
    codes = codes_of(tree_of(mutant), str(ROOT / mutant["file"]))
    for function in [thing for thing in gc.get_objects() if type(thing) is FunctionType]:
        code = function.__code__
        if code.co_filename == str(ROOT / mutant["file"]):
            function.__code__ = codes[code.co_filename, code.co_name, code.co_firstlineno]


class Reach:
    """The lines of the rooms that each test reaches, and how long it takes: a pytest plugin.

    What a fixture reaches counts for all tests of its file, since it may be set up for the first of them only.
    """

    def __init__(self) -> None:
        self.rooms = tuple(str(ROOT / "src" / "repmlp" / room) + os.sep for room in ROOMS)
        self.now: set[str] = set()
        self.fixtures: dict[str, set[str]] = {}
        self.tests: dict[str, tuple[float, set[str]]] = {}

    def __call__(self, frame: FrameType, event: str, argument: object) -> "Reach | None":
        """Trace the frames of the rooms, line by line."""
        if not frame.f_code.co_filename.startswith(self.rooms):
            return None
        self.now.add(f"{frame.f_code.co_filename[len(str(ROOT)) + 1 :]}:{frame.f_lineno}")
        return self

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> Iterator[None]:
        self.now = self.fixtures.setdefault(file_of(item.nodeid), set())
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

    def result(self) -> dict[str, tuple[float, list[str]]]:
        """The seconds and the lines, as FILE:LINE, of each test."""
        return {t: (s, sorted(lines | self.fixtures[file_of(t)])) for t, (s, lines) in self.tests.items()}


def file_of(test: str) -> str:
    return test.partition("::")[0]


def statement_of(mutant: Mutant) -> tuple[set[str], bool, bool]:
    """The lines of the statement that a mutant changes; whether it runs at import; whether its result is cached."""
    tree, line = ast.parse((ROOT / mutant["file"]).read_text()), mutant["line"]
    around = [node for node in ast.walk(tree) if isinstance(node, ast.stmt) and node.lineno <= line <= _end(node)]
    if not around:  # a decorator
        return set(), True, False
    functions = ast.FunctionDef | ast.AsyncFunctionDef
    inside = any(isinstance(node, functions) and line > _header_end(node) for node in around)
    lines = {f"{mutant['file']}:{n}" for n in range(around[-1].lineno, _header_end(around[-1]) + 1)}
    decorators = [part for node in around if isinstance(node, functions) for part in node.decorator_list]
    return lines, not inside, any("cache" in ast.unparse(part) for part in decorators)


def _end(node: ast.stmt) -> int:
    return node.end_lineno or node.lineno


def _header_end(node: ast.stmt) -> int:
    """The last line of a simple statement, or of what stands before the body of a compound one."""
    body = getattr(node, "body", None)
    return max(node.lineno, body[0].lineno - 1) if body else _end(node)


class Mutants:
    """Each mutant meets the tests that pytest collected and that reach it: a pytest plugin, which replaces its loop."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.is_fork = False

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        self.items = {item.nodeid: item for item in session.items}
        reach = self._reach(session)
        chosen = random.Random(self.arguments.seed).sample(sites(), self.arguments.mutants)
        done = {name_of(row): row for row in (json.loads(RESULTS.read_text()) if RESULTS.exists() else [])}
        for count, mutant in enumerate(chosen, 1):
            before = done.get(name_of(mutant))
            if before and not (self.arguments.again and before["result"] == "survived"):
                continue
            lines, at_import, cached = statement_of(mutant)
            any_test = at_import or cached  # of which most do not reach the line itself, but use what it made
            all_tests = [test for test, (_, reached) in reach.items() if any_test or not lines.isdisjoint(reached)]
            tests = self._affordable(mutant, all_tests, reach)
            meet = in_fresh_process if at_import else self._in_fork
            result = meet(mutant, tests, self.arguments.seconds) if tests else "survived"
            row = {**mutant, "result": result, "tests": len(tests), "reached_by": len(all_tests)}
            if not (before and result == "survived" and before["tests"] > len(tests)):  # it has met more tests
                done[name_of(mutant)] = row
            RESULTS.write_text(json.dumps([*done.values()], indent=1) + "\n")
            killed = sum(row["result"] != "survived" for row in done.values())
            print(f"{count}/{len(chosen)}  {killed} of {len(done)} killed  {done[name_of(mutant)]}", flush=True)
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self.is_fork and report.failed:
            os._exit(1)

    def _reach(self, session: pytest.Session) -> dict[str, tuple[float, list[str]]]:
        """What :class:`Reach` finds without a mutant, but with functions made anew; kept in a file."""
        file: Path = self.arguments.lines
        if not file.exists():
            if (child := self._fork()) == 0:
                for changed in {mutant["file"] for mutant in sites()}:
                    become({"file": changed, "number": -1})
                plugin = Reach()
                session.config.pluginmanager.register(plugin)
                self._run([*self.items], 10 * self.arguments.seconds)
                file.write_text(json.dumps(plugin.result()))
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise RuntimeError(f"tests fail without a mutant: run pytest {' '.join(self.arguments.tests)}")
        return json.loads(file.read_text())

    def _affordable(self, mutant: Mutant, tests: list[str], reach: dict[str, tuple[float, list[str]]]) -> list[str]:
        """The shortest tests, as many as the budget allows; those of the room of the mutant first, file by file."""
        room = "/".join(["tests", Path(mutant["file"]).parts[2], ""])
        seconds = 0.0
        chosen = []
        for test in sorted(tests, key=lambda test: reach[test][0]):
            seconds += reach[test][0]
            if seconds > self.arguments.budget and not self.arguments.again:
                break
            chosen.append(test)
        return sorted(chosen, key=lambda test: (reach[test][0] > 0.5, not test.startswith(room), file_of(test)))

    def _in_fork(self, mutant: Mutant, tests: list[str], seconds: int) -> str:
        if (child := self._fork()) == 0:
            try:
                become(mutant)
            except (KeyError, ValueError):
                os._exit(NOT_SO)
            self._run(tests, seconds)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            return "timeout" if os.WTERMSIG(status) == signal.SIGALRM else "killed"
        if os.WEXITSTATUS(status) == NOT_SO:
            return in_fresh_process(mutant, tests, seconds)
        return result_of(os.WEXITSTATUS(status))

    def _fork(self) -> int:
        """As os.fork; the fork is silent and stops at the first test that fails."""
        if (child := os.fork()) == 0:
            self.is_fork = True
            os.setsid()
            null = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(null, stream)
        return child

    def _run(self, tests: list[str], seconds: int) -> None:
        items = [self.items[test] for test in tests]
        for item, following in zip(items, [*items[1:], None], strict=True):
            signal.alarm(seconds)
            item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
        signal.alarm(0)


def name_of(mutant: Mutant) -> tuple[str, int, int, str]:
    return mutant["file"], mutant["number"], mutant["line"], mutant["change"]


def result_of(status: int) -> str:
    """What an exit status means, of pytest and of a fork."""
    if status not in (0, 1):
        raise RuntimeError(f"the tests of a mutant did not run: exit status {status}")
    return "killed" if status else "survived"


def in_fresh_process(mutant: Mutant, tests: list[str], seconds: int) -> str:
    """Run tests against a copy of the sources in which the mutant is written."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / mutant["file"]).write_text(ast.unparse(tree_of(mutant)))
        environment = {**os.environ, "PYTHONPATH": str(source)}
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
        try:
            run = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, timeout=10 * seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return "timeout"
        return result_of(run.returncode)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tests", nargs="*", default=TESTS, help="files or folders; all of the rooms by default")
    parser.add_argument("--mutants", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=180, help="for one test")
    parser.add_argument(
        "--budget", type=float, default=60, help="seconds of tests for one mutant, as they take without"
    )
    parser.add_argument("--again", action="store_true", help="those that survived, without a budget")
    parser.add_argument("--lines", type=Path, required=True, help="file for the lines that each test reaches")
    arguments = parser.parse_args()
    sys.path.insert(0, str(ROOT / "src"))
    os.chdir(ROOT)
    options = ["-q", "-s", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
    sys.exit(pytest.main([*options, *arguments.tests], plugins=[Mutants(arguments)]))


if __name__ == "__main__":
    main()
