"""Change the maths in small ways, one at a time, and see the tests fail (`make mutants`).

mutmut makes the changes and runs the tests; `[tool.mutmut]` of pyproject.toml says which. Here its
verdicts become a table, and what no test noticed is held against `mutants.toml`, which says of
some changes why nothing can notice them. Verdicts stay in `mutants/` for the next run: killed
mutants of functions that are still the same are not run again. Delete the folder to begin anew.
"""

import argparse
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

LEAST_KILLED = 0.9


KILLED = frozenset({"killed", "timeout", "segfault"})


@dataclass(frozen=True)
class Rule:
    """Survivors that need no test: `old` became `new` in the functions `where`; all are regexes."""

    old: str
    new: str
    why: str
    where: str = ""

    def explains(self, name: str, old: str, new: str) -> bool:
        same_but = f"(?P<a>.*?)(?:{self.old})(?P<b>.*)\0(?P=a)(?:{self.new})(?P=b)"
        return bool(re.search(self.where, name) and re.fullmatch(same_but, f"{old}\0{new}"))


@dataclass(frozen=True)
class Mutant:
    module: str
    name: str
    status: str

    def change(self) -> tuple[str, str]:
        """The changed lines before and after, each as one line."""
        lines = get_diff_for_mutant(self.name, path=Path(self.module)).splitlines()[2:]
        sides = ([line[1:] for line in lines if line.startswith(sign)] for sign in "-+")
        old, new = (" ".join(" ".join(side).split()) for side in sides)
        return old, new


def read_rules() -> list[Rule]:
    text = Path(__file__).with_suffix(".toml").read_text()
    return [Rule(**rule) for rule in tomllib.loads(text)["explained"]]


def forget_survivors() -> None:
    """They are run again, and which test reaches what is found anew: tests may have changed."""
    Path("mutants/mutmut-stats.json").unlink(missing_ok=True)
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        codes = data.exit_code_by_key
        left = [name for name, code in codes.items() if status_by_exit_code[code] not in KILLED]
        if left:
            codes.update(dict.fromkeys(left))
            data.save()


def read_mutants(pattern: str) -> Iterator[Mutant]:
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for name, code in data.exit_code_by_key.items():
            if fnmatch(name, pattern):
                yield Mutant(str(path), name, status_by_exit_code[code])


def report(mutants: list[Mutant], rules: list[Rule]) -> tuple[str, bool]:
    """What was found; whether enough was killed, and all else is explained."""
    survivors = [(one, *one.change()) for one in mutants if one.status not in KILLED]
    unexplained = [s for s in survivors if not any(r.explains(s[0].name, *s[1:]) for r in rules)]
    made, survived, left = (
        Counter([one.module for one in group] + ["in all"] * len(group))
        for group in (mutants, [s[0] for s in survivors], [s[0] for s in unexplained])
    )
    lines = ["| module | mutants | killed | % | explained | left |", "|---|--:|--:|--:|--:|--:|"]
    for module in sorted(made, key=lambda one: (one == "in all", one)):
        killed = made[module] - survived[module]
        cells = [module, made[module], killed, f"{100 * killed / made[module]:.1f}"]
        cells += [survived[module] - left[module], left[module]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += [f"\n{one.name}: {one.status}\n- {old}\n+ {new}" for one, old, new in unexplained]
    is_enough = len(survivors) <= (1 - LEAST_KILLED) * len(mutants)
    return "\n".join(lines) + "\n", is_enough and not unexplained


def main() -> int:
    parser = argparse.ArgumentParser(description="Change the maths, and see the tests fail.")
    parser.add_argument("--sample", default="", help="mutants whose number ends so: 0 to 9")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    pattern = f"*{arguments.sample}"
    if not arguments.sample and Path("mutants").is_dir():
        forget_survivors()
    tool = [str(Path(sys.executable).with_name("mutmut")), "run"]
    command = [*tool, "--max-children", str(arguments.processes)]
    command += [pattern] if arguments.sample else []
    subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    text, is_good = report(list(read_mutants(pattern)), read_rules())
    sys.stdout.write(text)
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
