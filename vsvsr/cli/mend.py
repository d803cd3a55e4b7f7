"""Runs commands that mend an installation, in a process that has loaded nothing of it: files in use cannot be replaced
on Windows."""

import shlex
import subprocess
import sys

MODULES = {"pip": "pip", "vapoursynth": "vapoursynth", "vsvsr": "vsvsr"}
"""Programs that belong to this Python, by the module that is the same."""


def main(commands: list[str]) -> int:
    """Run them in turn until one fails; its exit code, or 0."""
    for command in commands:
        print(f"$ {command}", flush=True)
        program, *arguments = shlex.split(command)
        code = subprocess.call([sys.executable, "-m", MODULES[program], *arguments])
        if code:
            print(f"vsvsr: {command} ended with exit code {code}", file=sys.stderr)
            return code
    print("run vsvsr doctor again", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
