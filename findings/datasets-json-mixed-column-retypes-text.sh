#!/usr/bin/env bash
# Version: datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
#
# One JSON Lines file whose field `answer` holds texts in most rows and a number or a list in one.
#
# Expected: an error about mixed types, or every value as the file has it: "007" stays a text.
# seen, `[7, None, True, 1000.0, 'Paris', 12]` for the rows "007", "null", "true", "1e3", "Paris",
# 12: one row that is no text turns every text that happens to be valid JSON into that JSON's
# value, while the texts beside it stay texts. Without the last row, seen
# `['007', 'null', 'true', '1e3', 'Paris']`, as written. With `features` that say string, seen
# `['007', 'null', 'true', '1e3', '"Paris"', '12']`: now the other text gains quotes.
#
# Who is hit: question and answer sets with a few numeric or list answers: reference answers lose
# their zeros, "null" is a missing answer, and a string comparison fails on some rows only.
# A way out: write the field as a text in every row; on_mixed_types=None gives the error.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q --no-compile datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1
cd "$work"

cat > check.py <<'PY'
import json

import datasets

datasets.disable_progress_bars()


def load(name, answers, **options):
    with open(name, "w") as file:
        file.writelines(json.dumps({"answer": answer}) + "\n" for answer in answers)
    rows = datasets.load_dataset("json", data_files=name, split="train", **options)
    print(rows.features["answer"], rows["answer"][:])
    return rows["answer"][:]


texts = ["007", "null", "true", "1e3", "Paris"]
assert load("texts.jsonl", texts) == texts
mixed = load("mixed.jsonl", [*texts, 12])
assert [repr(value) for value in mixed] == ["7", "None", "True", "1000.0", "'Paris'", "12"]
typed = datasets.Features({"answer": datasets.Value("string")})
quoted = load("mixed.jsonl", [*texts, 12], features=typed)
assert quoted == ["007", "null", "true", "1e3", '"Paris"', "12"]
assert load("list.jsonl", ["12", ["a", "b"]]) == [12, ["a", "b"]]
try:
    load("mixed.jsonl", [*texts, 12], on_mixed_types=None)
except datasets.exceptions.DatasetGenerationError as error:
    print(error.__cause__)
else:
    raise SystemExit("on_mixed_types=None no longer refuses the column")
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: in a JSON column with one value that is no text, the datasets loader turns texts such as \"007\", \"null\" and \"true\" into 7, None and True"
