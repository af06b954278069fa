#!/usr/bin/env bash
# Version: lm_eval==0.4.13
#
# The same 20 answers go through MultiChoiceRegexFilter.apply, once together and once one by one.
#
# Expected: about the same time, as the work is a regular expression for each answer.
# seen, `20 calls took 21.1 times as long as one call (6.97 s, 0.33 s)`: each apply
# first asks for the Unicode category of every code point (over a million), even where
# ignore_punctuation is off and the table is not used, so a call costs a few tenths of a second
# whatever it is given.
#
# Who is hit: code that scores each response as it arrives (rewards, a server, a progress view):
# 1000 responses cost minutes of processor time in place of milliseconds.
# A way out: collect the responses and call apply once.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q lm_eval==0.4.13
cd "$work"

cat > check.py <<'PY'
import time

from lm_eval.filters.extraction import MultiChoiceRegexFilter

COUNT = 20
extract = MultiChoiceRegexFilter(regex_pattern=r"answer is \(?([A-Z])\)?")
answers = [["The answer is (B)"]] * COUNT
docs = [{"choices": ["red", "green", "blue"]}] * COUNT

start = time.process_time()
together = list(extract.apply(answers, docs))
once = time.process_time() - start

start = time.process_time()
single = [list(extract.apply([a], [d]))[0] for a, d in zip(answers, docs)]
each = time.process_time() - start

assert together == single == [["B"]] * COUNT, (together, single)
print(f"{COUNT} calls took {each / once:.1f} times as long as one call ({each:.2f} s, {once:.2f} s)")
assert each > 5 * once
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: every call of lm-eval's MultiChoiceRegexFilter.apply scans all of Unicode first, so a call for each response costs many times one call over all"
