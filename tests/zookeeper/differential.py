#!/usr/bin/python3
"""Runs the same random sequences against two servers that speak ZooKeeper's protocol and compares all that comes back. The first
difference is cut down to the fewest steps that still show it, and printed with the seed that made it.

    differential.py A B [--seed N] [--rounds N] [--seconds S] [--see THING,…] [--steps N] [--without CLASS,…] [--keep FILE]
    differential.py A B --replay FILE

A and B: HOST:PORT, or several separated by commas for an ensemble, whose members serve one session each. It goes on for S seconds
and until A has shown each THING (as the list at the end names them), however slow the machine is, but not for more than N sequences.
Ends with 0 if nothing differed, with 1 if something did, with 2 if some THING was not seen.
"""

import argparse
import json
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from execution import Execution
from sequence import PECULIAR, Maker


class Judge:
    """Two targets, and what has been run against them."""

    def __init__(self, targets, patience):
        self.targets = targets
        self.patience = patience
        self.runs = 0
        self.coverage = Counter()
        # Of an earlier use of the same servers, nothing is in the way.
        self.root = f"/q{time.time_ns() // 1000}"
        self.pool = ThreadPoolExecutor(2)

    def compare(self, steps):
        """The first step that differs, with what each target answered; or nothing."""
        self.runs += 1
        root = f"{self.root}-{self.runs:06}"
        together = all(len(members) == 1 for members in self.targets)
        executions = [Execution(members, root, together, self.patience) for members in self.targets]
        ours, theirs = self.pool.map(lambda execution: execution.run(steps), executions)
        self.coverage += executions[0].coverage
        for index, (one, other) in enumerate(zip(ours, theirs)):
            if one != other:
                return index, one, other
        return None

    def smallest(self, steps, seconds):
        """Fewer steps that still differ: halves, quarters and so on are left out, then single operations of what is sent at once."""
        differs = lambda fewer: self.compare(fewer) is not None
        end = time.monotonic() + seconds
        size = max(1, len(steps) // 2)
        while time.monotonic() < end:
            at, shrunk = 0, False
            while at < len(steps) and time.monotonic() < end:
                fewer = steps[:at] + steps[at + size :]
                if fewer and differs(fewer):
                    steps, shrunk = fewer, True
                else:
                    at += size
            if size == 1 and not shrunk:
                break
            size = max(1, size // 2)
        for index, step in enumerate(steps):
            at = 0
            while step[1] == "send" and len(step[2]) > 1 and at < len(step[2]) and time.monotonic() < end:
                fewer = [step[0], "send", step[2][:at] + step[2][at + 1 :]]
                if differs(steps[:index] + [fewer] + steps[index + 1 :]):
                    step = steps[index] = fewer
                else:
                    at += 1
        return steps


def show(steps, difference):
    index, one, other = difference
    for number, step in enumerate(steps):
        print(f"  {'→' if number == index else ' '} {json.dumps(step, ensure_ascii=False)}")
    common = 0
    while common < min(len(one), len(other)) and one[common] == other[common]:
        common += 1
    for name, notes in (("A", one), ("B", other)):
        print(f"  {name}:")
        for note in notes[max(0, common - 1) :]:
            print(f"      {note}")


def addresses(text):
    def address(part):
        host, _, port = part.rpartition(":")
        return (host, int(port))

    return [address(part) for part in text.split(",")]


def unseen(judge, wanted):
    return [thing for thing in wanted if not judge.coverage[thing]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("a", type=addresses)
    parser.add_argument("b", type=addresses)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_007)
    parser.add_argument("--rounds", type=int, default=1_000_000_000)
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--see", default="", help="what has to be seen: EVENT or REQUEST: ERROR, separated by commas")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--without", default="", help="classes of peculiar behaviour: " + ", ".join(PECULIAR))
    parser.add_argument("--cut-seconds", type=float, default=60, help="how long to look for a shorter sequence")
    parser.add_argument("--patience", type=float, default=10, help="seconds after which a server that says nothing is silent")
    parser.add_argument("--keep", help="a file for the sequence that differs")
    parser.add_argument("--replay", help="runs the sequence of this file")
    arguments = parser.parse_args()
    without = [name for name in arguments.without.split(",") if name]
    if unknown := set(without) - set(PECULIAR):
        parser.error(f"no class {', '.join(unknown)}: there are {', '.join(PECULIAR)}")
    judge = Judge([arguments.a, arguments.b], arguments.patience)
    if arguments.replay:
        with open(arguments.replay, encoding="utf-8") as file:
            steps = json.load(file)
        difference = judge.compare(steps)
        if difference:
            show(steps, difference)
        print("they differ" if difference else "no difference")
        return 1 if difference else 0
    wanted = [thing for thing in arguments.see.split(",") if thing]
    sessions = max(3, len(arguments.a), len(arguments.b))
    end = time.monotonic() + arguments.seconds
    steps_run = 0
    for seed in range(arguments.seed, arguments.seed + arguments.rounds):
        if time.monotonic() > end and not unseen(judge, wanted):
            break
        steps = Maker(seed, sessions, arguments.steps, without).steps()
        steps_run += len(steps)
        difference = judge.compare(steps)
        if difference is None:
            continue
        print(f"seed {seed}: step {difference[0]} of {len(steps)} differs; cutting down")
        found = difference
        smallest = judge.smallest(steps[: difference[0] + 1], arguments.cut_seconds)
        difference = judge.compare(smallest)
        if difference is None:
            # It does not always differ: then the whole is what there is to show.
            print("the cut-down sequence differs only sometimes")
            smallest, difference = steps, found
        show(smallest, difference)
        if arguments.keep:
            with open(arguments.keep, "w", encoding="utf-8") as file:
                json.dump(smallest, file)
        return 1
    print(f"{judge.runs} sequences, {steps_run} steps, {sum(judge.coverage.values())} things seen, no difference (seeds from {arguments.seed})")
    for name, count in sorted(judge.coverage.items()):
        print(f"  {count:7} {name}")
    if missing := unseen(judge, wanted):
        print("an agreement that says little, none of these was seen: " + ", ".join(missing))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
