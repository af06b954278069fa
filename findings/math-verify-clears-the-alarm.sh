#!/usr/bin/env bash
# Version: math-verify==0.9.0 latex2sympy2_extended==1.11.0 antlr4-python3-runtime==4.13.2
#
# A program gives itself a time limit with signal.setitimer(ITIMER_REAL) and then grades answers.
#
# Expected: parse() and verify() keep their own limit (5 s by default) and leave the caller's
# limit as they found it, since they do put the caller's SIGALRM handler back.
# seen, `timer after parse: (0.0, 0.0)` and `timer after verify: (0.0, 0.0)`: the handler is back,
# but the timer behind it is gone, so a limit of 0.3 s around a loop of 1 s never fires:
# `0.3 s limit fired: False`.
#
# Who is hit: trainers and evaluations that bound a reward, a batch or a whole step by SIGALRM
# (pytest-timeout does so too); the first graded answer removes the bound without a word.
# A way out: parsing_timeout=None and timeout_seconds=None, with a limit of your own.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q math-verify==0.9.0 latex2sympy2_extended==1.11.0 \
    antlr4-python3-runtime==4.13.2
cd "$work"

cat > check.py <<'PY'
import signal
import time

from math_verify import parse, verify

fired = []


def limit(signum, frame):
    fired.append(signum)


signal.signal(signal.SIGALRM, limit)

unlimited = parse("$\\frac{1}{2}$", parsing_timeout=None)
signal.setitimer(signal.ITIMER_REAL, 60)
assert verify(unlimited, unlimited, timeout_seconds=None)
kept = signal.getitimer(signal.ITIMER_REAL)[0]
print("timer kept with the library's limits off:", kept > 0)
assert kept > 0

signal.setitimer(signal.ITIMER_REAL, 60)
answer = parse("$\\frac{1}{2}$")
after_parse = signal.getitimer(signal.ITIMER_REAL)
print("timer after parse:", after_parse)

signal.setitimer(signal.ITIMER_REAL, 60)
assert verify(answer, parse("$0.5$", parsing_timeout=None))
after_verify = signal.getitimer(signal.ITIMER_REAL)
print("timer after verify:", after_verify)

signal.setitimer(signal.ITIMER_REAL, 0.3)
parse("$1$")
fired.clear()
end = time.monotonic() + 1
while time.monotonic() < end:
    time.sleep(0.05)
print("0.3 s limit fired:", bool(fired))

assert signal.getsignal(signal.SIGALRM) is limit
assert after_parse == (0.0, 0.0) and after_verify == (0.0, 0.0) and not fired
PY
"$work/venv/bin/python" check.py
echo "finding: math-verify's parse and verify restore the caller's SIGALRM handler but cancel its timer, so a program's own time limit never fires"
