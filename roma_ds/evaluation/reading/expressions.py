"""Whether two formulas are equal in value, by math-verify in a process of its own.

Its time limits are alarms: they work in the main thread alone and clear an alarm of the program's own, and
without them some formulas are computed for ever. A process can be ended instead.
"""

from __future__ import annotations

import atexit
import json
import re
import selectors
import subprocess
import sys
from functools import lru_cache
from typing import Any

from roma_ds.evaluation.reading.prose import closing

_LONGEST = 400
_SECONDS = 5.0
_SECONDS_TO_START = 120.0
_MEMORY = 8 * 1024**3
_BOX = re.compile(r"\\boxed\s*\{")
_COMMAND = re.compile(
    r"\\(?!(?:[dtc]?frac|text\w*|math(?:rm|bf|it)|left|right|circ|approx|times|cdot|boxed"
    r"|fbox)(?![A-Za-z]))[A-Za-z]+|√|π|∞|\^"
    r"|(?<![A-Za-z])[a-z]\s*[-+*/]\s*\w|\d[a-z](?![A-Za-z])\s*[-+=]"
)
_TUPLE = re.compile(r"\\?[(\[{][^()\[\]{}]*,[^()\[\]{}]*[)\]}]")


def boxed(text: str) -> str:
    """What the last `\\boxed{...}` holds, empty where there is none."""
    boxes = list(_BOX.finditer(text))
    return text[boxes[-1].end() : closing(text, boxes[-1].end())].strip() if boxes else ""


def is_expression(text: str) -> bool:
    """Whether a text is a formula and no plain number: with a root, a power, a variable, a pair."""
    bare = text.strip().strip("$").strip()
    if len(bare) > _LONGEST:
        return False
    return bool(_COMMAND.search(bare)) or bool(_TUPLE.fullmatch(bare))


def same_expression(reference: str, said: str) -> bool:
    """Whether both formulas have one value. False where one is no formula, too long or too slow."""
    one, other = _bare(reference), _bare(said)
    if one == other:
        return bool(one)
    if not other or max(len(one), len(other)) > _LONGEST:
        return False
    return _verified(one, other)


def _bare(text: str) -> str:
    text = re.sub(r"\\(?:left|right)(?![A-Za-z])|\\[()\[\],;! ]|\$", "", boxed(text) or text)
    return re.sub(r"\\[dt]frac", r"\\frac", text).strip().rstrip(".").strip()


@lru_cache(maxsize=4096)
def _verified(reference: str, said: str) -> bool:
    return _JUDGE.equal(reference, said)


class _Judge:
    """The process that computes, started when it is first asked and again after it took too long."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def equal(self, reference: str, said: str) -> bool:
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(
                [sys.executable, "-m", __name__],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            atexit.register(self.close)
            if self._line(_SECONDS_TO_START) is None:
                self.close()
                return False
        asked = self._process.stdin
        assert asked is not None
        try:
            asked.write(json.dumps([reference, said]) + "\n")
            asked.flush()
        except BrokenPipeError:
            return False
        answer = self._line(_SECONDS)
        if answer is None:
            self.close()
        return answer == "true"

    def _line(self, seconds: float) -> str | None:
        """The next line of the process; None where it says nothing in time or ends."""
        said = self._process.stdout if self._process else None
        if said is None:
            return None
        with selectors.DefaultSelector() as selector:
            selector.register(said, selectors.EVENT_READ)
            if not selector.select(seconds):
                return None
        return said.readline().strip() or None

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
        self._process = None
        atexit.unregister(self.close)


_JUDGE = _Judge()


def _serve() -> None:
    import resource

    from math_verify import parse, verify  # type: ignore[import-untyped]
    from math_verify.parser import LatexExtractionConfig  # type: ignore[import-untyped]

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    # Only LaTeX: the library hands plain expressions to sympy's parser, which evaluates them as Python.
    kinds = [LatexExtractionConfig()]

    def parsed(text: str) -> Any:
        return parse(f"${text}$", extraction_config=kinds, parsing_timeout=None)

    print("ready", flush=True)
    for line in sys.stdin:
        reference, said = json.loads(line)
        try:
            equal = verify(parsed(reference), parsed(said), timeout_seconds=None)
        except Exception:  # noqa: BLE001  whatever cannot be computed is not equal
            equal = False
        print(json.dumps(bool(equal)), flush=True)


if __name__ == "__main__":
    _serve()
