"""``python -m tests.attack --minutes 60``: rounds of all parts in turn, until the time is over or one finds a fault.

Each round is printed when it finds a fault, and can be played again: ``--seed S --part P --first N --rounds 1``; how
threads meet differs each time.
"""

import argparse
import faulthandler
import secrets
import sys
import time

from tests.attack.rounds import PARTS, Attack
from tests.attack.tally import Tally


def main() -> int:
    """The command line; 1 if a fault was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.attack", description=__doc__)
    parser.add_argument("--minutes", type=float, default=1e9, help="to go on for")
    parser.add_argument("--rounds", type=int, default=10**9, help="to play of each part at most")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", default=str(secrets.randbelow(10**6)))
    parser.add_argument("--part", action="append", choices=list(PARTS), help="instead of all; may be repeated")
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    tally, reported = Tally(), time.monotonic()
    end = time.monotonic() + given.minutes * 60
    faults = 0
    with Attack(given.seed, tally) as attack:
        for number in range(given.first, given.first + given.rounds):
            for part in given.part or PARTS:
                if time.monotonic() > end:
                    break
                faults += not attack.round(part, number)
            if time.monotonic() > end:
                break
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                print("\n".join(tally.lines()), flush=True)
    print(f"seed {given.seed}, {faults} rounds found a fault", *tally.lines(), sep="\n", flush=True)
    return min(faults, 1)


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
