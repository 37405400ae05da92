"""Kill, stop, starve and race the commands at random moments, and check that nothing is lost.

One process imports everything and forks a child for each round. The child runs a command on tiny files, in a folder
that also holds a stranger's files. A fault hits it before a random file operation, or after a random time:

    kill, term, int   SIGKILL, SIGTERM, Ctrl-C
    full              no file can grow beyond a few bytes, as on a full disk
    perms             all folders become read-only
    race              the command halts, a second one starts on the same output, then the first one continues

Afterwards every file must be whole and old, whole and new, or named as partial; a stranger's files and the inputs must
be as they were; and the command, given again (or ``train --resume``), must end as an undisturbed one does.
"""

import argparse
import contextlib
import importlib
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before PyTorch is imported: children do not inherit a pool of threads

import numpy as np
from common import HERE, table, write
from faults_check import Check, Tree, restore, tree
from faults_child import Child, Fault, set_modes
from faults_memo import remember_slow_steps, warm_up
from PIL import Image

for name in ("train", "convert", "export", "quantize", "ablate"):  # now, not in each child
    importlib.import_module(f"repmlp_cli.{name}")

KINDS = ("kill", "term", "int", "full", "perms", "race")
RECIPE = """
model_args: {channels: [4, 8], partition_size: 4, kernel_sizes: [1, 3]}
img_size: 8
epochs: 3
batch_size: 16
lr: 0.1
val_fraction: 0.25
ema: 0.9
crop_padding: 1
state_every: 1
cpu: true
"""


@dataclass(frozen=True)
class Case:
    """A command, and what it works on.

    Attributes:
        words: of the command. {w} is the folder of the round, {b} the one of the templates.
        output: what it writes, in the folder of the round.
        needs: templates to copy, by the name of their copy.
        strangers: files that are not ours, in folders of ours.
        rival: words of another command that writes the same output; by default the same.
    """

    words: str
    output: str
    needs: dict[str, str] = field(default_factory=dict)
    strangers: tuple[str, ...] = ()
    rival: str = ""

    @property
    def overwrites(self) -> bool:
        """Whether two commands, one after the other, may write the output."""
        return "--overwrite" in self.words or self.words.startswith(("save_model", "ablate"))

    @property
    def grows(self) -> bool:
        """Whether the output is written file by file, and an interrupted command resumes."""
        return self.output in ("run", "study")


TRAIN, RESUME = "train --config {b}/recipe.yaml {w}/run", "train --resume {w}/run"
WEIGHTS = "--method=weights --overwrite"
CASES = {
    "train": Case(TRAIN, "run"),
    "train --overwrite": Case(f"{TRAIN} --overwrite", "run", {"run": "old"}, ("run/README.md",)),
    "train --resume": Case(
        RESUME, "run", {"run": "stopped"}, ("run/a.txt", "run/model/b.txt", "run/state/c.txt"), rival=TRAIN
    ),
    "ablate": Case("ablate {b}/recipe.yaml {w}/study --rows=pure-mlp --seeds=0", "study"),
    "convert": Case("convert {w}/in {w}/deploy", "deploy", {"in": "new"}),
    "convert --overwrite": Case(
        "convert {w}/in {w}/m --overwrite", "m", {"in": "new", "m": "old-deploy"}, ("m/README.md",)
    ),
    "save_model": Case("save_model {b}/new {w}/m", "m", {"m": "old/model"}, ("m/README.md",)),
    "export onnx": Case("export {b}/deploy {w}/x.onnx --overwrite", "x.onnx", {"x.onnx": "old.onnx"}),
    "export openvino": Case(
        "export {b}/deploy {w}/x.xml --format=openvino --overwrite",
        "x.xml",
        {"x.xml": "old.xml"},
    ),
    "export torch": Case("export {b}/deploy {w}/x.pt2 --format=torch", "x.pt2"),
    "quantize": Case(
        f"quantize {{b}}/deploy {{w}}/x.onnx {WEIGHTS}",
        "x.onnx",
        {"x.onnx": "old.onnx"},
        rival="export {b}/deploy {w}/x.onnx --overwrite",
    ),
    "quantize openvino": Case(f"quantize {{b}}/deploy {{w}}/x.xml --engine=openvino {WEIGHTS}", "x.xml"),
}
#: Made when a case needs them: runs of two seeds, one of them also stopped half-way, and what is made of them.
TEMPLATES = {
    "new": "train --config {b}/recipe.yaml {b}/new",
    "old": "train --config {b}/recipe.yaml {b}/old --seed=1",
    "stopped": "train --config {b}/recipe.yaml {b}/stopped",
    "deploy": "convert {b}/new {b}/deploy",
    "old-deploy": "convert {b}/old {b}/old-deploy",
    "old.onnx": "export {b}/old-deploy {b}/old.onnx",
    "old.xml": "export {b}/old-deploy {b}/old.xml --format=openvino",
}


class Rounds:
    """Random rounds of some cases; see the top of this file.

    Args:
        base: an empty folder.
        names: of the cases.
        planted: name of a fault of ours, which has to be found.
    """

    def __init__(self, base: Path, names: list[str], planted: str | None = None) -> None:
        self.base, self.work, self.names = base, base / "work", names
        self.planted: str | None = None
        remember_slow_steps()
        self.operations: dict[str, int] = {}  # of the templates
        make_images(base / "data")
        (base / "recipe.yaml").write_text(f"{RECIPE}data: folder:{base}/data\n")
        self.references = {name: self.reference(name) for name in names}
        self.planted = planted

    def start(self, words: str, fault: Fault | None = None, folder: Path | None = None) -> Child:
        return Child(self.fill(words), folder or self.work, fault or Fault(), self.planted)

    def fill(self, words: str) -> list[str]:
        return words.format(w=self.work, b=self.base).split()

    def finish(self, words: str, folder: Path | None = None) -> int:
        """Run a command to its end, undisturbed; returns its number of file operations."""
        if words.startswith(("export", "quantize")):
            warm_up(self.fill(words))
        child = self.start(words, folder=folder)
        status = child.wait()
        child.end()
        if status != 0:
            raise RuntimeError(f"{words} ends with status {status}: {child.text[-300:]}")
        *_, operations, imported = re.split(r"(\d+) file operations; imported ?", child.text)
        for module in imported.split():  # here, so that the next child need not
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        return int(operations)

    def make(self, template: str) -> None:
        """Make a template, and those that it is made of."""
        words = TEMPLATES.get(template, "")
        if not words or (self.base / template).exists():
            return
        for part in re.findall(r"{b}/([\w.-]+)", words):
            if part != template:
                self.make(part)
        if template == "stopped":
            self.make("new")
            early = Fault("int", self.operations["new"] // 3)  # the second half is the report
            child = self.start(words, early, self.base / template)
            status = child.wait()
            child.end()
            if status != 130:
                raise RuntimeError(f"{words}, interrupted, ends with status {status}: {child.text[-900:]}")
        else:
            self.operations[template] = self.finish(words, self.base / template)

    def prepare(self, case: Case) -> tuple[Tree, Tree]:
        """A fresh folder for a round; returns the files to keep, and the old output."""
        if self.work.exists():
            set_modes(self.work, 0o755)
            shutil.rmtree(self.work)
        self.work.mkdir()
        for template in (*re.findall(r"{b}/([\w.-]+)", case.words), *case.needs.values()):
            self.make(template.partition("/")[0])
        for name, template in case.needs.items():
            if (self.base / template).is_dir():
                shutil.copytree(self.base / template, self.work / name)
                continue
            for source in (*self.base.glob(f"{template}*"), *self.base.glob(template.replace(".xml", ".bin"))):
                shutil.copy(source, self.work / source.name.replace(Path(template).stem, Path(name).stem, 1))
        old = {name: content for name, content in tree(self.work).items() if not name.startswith("in/")}
        strangers = ("notes.txt", "photos/a.png", "config.json", *case.strangers)
        for name in strangers:
            (self.work / name).parent.mkdir(parents=True, exist_ok=True)
            (self.work / name).write_text(f"{name} is mine")
        kept = {name: content for name, content in tree(self.work).items() if name in strangers or name not in old}
        return kept, {name: content for name, content in old.items() if name not in strangers}

    def reference(self, name: str) -> tuple[Tree, int, float]:
        """The output of an undisturbed command, its number of file operations and its seconds."""
        case, results = CASES[name], []
        for _ in range(2):
            kept, old = self.prepare(case)
            started = time.monotonic()
            operations = self.finish(case.words)
            seconds = time.monotonic() - started
            new = {name: content for name, content in tree(self.work).items() if name not in kept}
            results.append((new, operations, seconds))
        outcome, faults = Check(kept, old, results[0][0], case.grows).examine(self.work)
        if outcome != "new" or faults:
            raise RuntimeError(f"{name} gives other files each time: {outcome}, {faults}")
        return results[1]

    def round(self, number: int, seed: int, name: str | None = None, kind: str | None = None) -> dict[str, Any]:
        """One round and its faults; by default of a random case and kind."""
        draw = random.Random(f"{seed} {number}")
        name, kind = name or draw.choice(self.names), kind or draw.choice(KINDS)
        case, (new, operations, seconds) = CASES[name], self.references[name]
        timed = draw.random() < 0.4
        fault = Fault(kind, 0 if timed else draw.randint(1, operations), draw.choice((0, 10, 100, 1000, 10_000)))
        rival, moment = draw.choice((case.words, case.rival or case.words)), draw.uniform(0, seconds)
        check = Check(*self.prepare(case), new, case.grows)
        started = time.monotonic()
        children = [self.start(case.words, fault)]
        if timed:
            children[0].wait(moment)
            if children[0].status is None:
                fault.strike(children[0].pid, self.work)
        if children[0].wait() is None and kind == "race":
            children.append(self.start(rival))
            children[1].wait(3 * seconds + 2)  # it may wait for the first one
            os.kill(children[0].pid, signal.SIGCONT)
        faults = [fault for child in children for fault in child.judge(kind)]
        set_modes(self.work, 0o755)
        statuses = [child.status for child in children]
        if len(children) == 2 and 0 not in statuses:
            faults.append(f"neither command wrote the output: {[child.text[-200:] for child in children]}")
        if statuses.count(0) == 2 and not case.overwrites:
            faults.append("both commands wrote the output")
        if statuses[1:] == [0] and rival != case.words:
            check.rival = self.rival(name, rival)
        partial = next(self.work.rglob(".repmlp-partial-*"), None)
        if partial and children[0].status in (0, 2, 130) and kind != "perms":
            faults.append(f"a command that was not killed leaves {partial.name}")
        aside = restore(self.work)
        outcome, found = check.examine(self.work)
        faults += [*found, *self.again(case, check, outcome)]
        row = {"round": number, "command": name, "fault": kind, "at": "time" if timed else "operation"}
        row |= {"status": statuses, "outcome": "set aside" if aside else outcome, "partial": bool(partial)}
        return {**row, "faults": faults, "seconds": round(time.monotonic() - started, 2)}

    def rival(self, name: str, words: str) -> Tree:
        """The output of another command in the place of this one's, undisturbed; the folder of the round is kept."""
        kept = self.work.rename(self.base / "kept")
        strangers, _ = self.prepare(CASES[name])
        self.finish(words)
        output = {file: content for file, content in tree(self.work).items() if file not in strangers}
        shutil.rmtree(self.work)
        kept.rename(self.work)
        return output

    def again(self, case: Case, check: Check, outcome: str) -> list[str]:
        """Finish what was interrupted, as a user does, and compare with what an undisturbed command gives."""
        run = self.work / "run"
        words = case.words if case.grows or case.overwrites else f"{case.words} --overwrite"
        if case.output == "run" and outcome == "between" and (run / "config.yaml").exists():
            words = "" if (run / "test.json").exists() else RESUME
        try:
            if words and outcome != "new":
                self.finish(words)
        except RuntimeError as error:
            return [f"again: {error}"]
        outcome, faults = check.examine(self.work)
        if outcome != "new":
            faults.append(f"the output is {outcome}, not that of an undisturbed command")
        return [f"again: {fault}" for fault in faults]


def make_images(folder: Path) -> None:
    """Two classes of 24 images to train on and 4 to test on."""
    generator = np.random.default_rng(0)
    for split, images in (("train", 24), ("val", 4)):
        for label, name in enumerate(("dark", "light")):
            (folder / split / name).mkdir(parents=True)
            for i in range(images):
                pixels = generator.integers(0, 128, (8, 8, 3), dtype=np.uint8) + np.uint8(80 * label)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")


def summary(rows: list[dict[str, Any]]) -> str:
    """What became of the output, by command and by fault."""
    columns = {"old": "old", "between": "resumable", "new": "new", "rival": "new", "set aside": "set aside"}
    outcomes, parts = list(dict.fromkeys(columns.values())), []
    for key in ("command", "fault"):
        lines = []
        for value in [*dict.fromkeys(sorted(row[key] for row in rows)), "all"]:
            own = [row for row in rows if value in (row[key], "all")]
            counts = Counter(columns.get(row["outcome"].partition(",")[0], row["outcome"]) for row in own)
            litter = sum(row["partial"] for row in own)
            faults = sum(bool(row["faults"]) for row in own)
            lines.append([value, str(len(own)), *(str(counts[name]) for name in outcomes)])
            lines[-1] += [str(litter), str(len(own) - faults), str(faults)]
        parts.append(table([key, "rounds", *outcomes, "partial files", "ended alike", "faults"], lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=500, help="in all; those in the results are not repeated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", default=",".join(CASES), help="names, separated by commas")
    parser.add_argument("--name", default="faults", help="of the files in results/")
    args = parser.parse_args()
    file = HERE / "results" / f"{args.name}.json"
    rows = json.loads(file.read_text())["results"] if file.exists() else []
    with tempfile.TemporaryDirectory(prefix="faults-") as base:
        rounds = Rounds(Path(base), args.cases.split(","))
        for number in range(len(rows), args.rounds):
            rows.append(rounds.round(number, args.seed))
            if rows[-1]["faults"]:
                print(rows[-1], flush=True)
            if number % 20 == 19 or number == args.rounds - 1:
                write(args.name, {"rounds": len(rows), "seed": args.seed}, rows, summary(rows))
        set_modes(Path(base), 0o755)


if __name__ == "__main__":
    main()
