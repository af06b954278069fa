#!/usr/bin/env bash
# Version: datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
#
# Two JSON Lines files of one text field; the second file's texts all happen to be dates.
#
# Expected: JSON has no dates, so a JSON string comes back as the same string.
# seen, `string ['released in spring', '2024-01-31 00:00:00']`: the column is a string column,
# and yet the text "2024-01-31" of the second file comes back with a time that nobody wrote.
# The date file on its own, seen `timestamp[s] [datetime.datetime(2024, 1, 31, 0, 0)]`; and with
# the date file first, the load ends, seen "Failed to parse string: 'released in spring' as a
# scalar of type timestamp[s]". Types are guessed a file at a time before any cast, so `features`
# with a string column do not help, seen `with features: string ['released in spring',
# '2024-01-31 00:00:00']`.
#
# Who is hit: sets with short answers or labels split over files: what is trained on, or compared
# with a prediction, depends on which rows share a file and on the order of the files.
# A way out: read the lines with the json module and build the set with Dataset.from_list.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$work"

cat > check.py <<'PY'
import datetime

import datasets

datasets.disable_progress_bars()
with open("words.jsonl", "w") as file:
    file.write('{"text": "released in spring"}\n')
with open("dates.jsonl", "w") as file:
    file.write('{"text": "2024-01-31"}\n')


def load(*files, **options):
    rows = datasets.load_dataset("json", data_files=list(files), split="train", **options)
    kind = rows.features["text"].dtype
    print(kind, rows["text"][:])
    return kind, rows["text"][:]


both = load("words.jsonl", "dates.jsonl")
assert both == ("string", ["released in spring", "2024-01-31 00:00:00"])
assert load("dates.jsonl") == ("timestamp[s]", [datetime.datetime(2024, 1, 31)])
try:
    load("dates.jsonl", "words.jsonl")
except datasets.exceptions.DatasetGenerationError as error:
    print(error.__cause__)
    assert "as a scalar of type timestamp[s]" in str(error.__cause__)
else:
    raise SystemExit("the order of the files no longer matters")

typed = datasets.Features({"text": datasets.Value("string")})
print("with features:", end=" ")
assert load("words.jsonl", "dates.jsonl", features=typed) == both
assert datasets.Dataset.from_list([{"text": "2024-01-31"}])["text"][:] == ["2024-01-31"]
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: the datasets JSON loader gives the text \"2024-01-31\" back as \"2024-01-31 00:00:00\" in a string column when all texts of its file are dates"
