#!/usr/bin/env bash
# Version: faiss-cpu==1.15.1 numpy==2.4.6
#
# A search among some ids only, by SearchParametersIVF(sel=...), over indexes of index_factory.
#
# Expected: sel is a field of the parameters of the IVF family, so each IndexIVF takes it.
# seen, `IVF4,RQ2x4 is an IndexIVF: True; Error: 'sel' failed: id selector not supported for this
# index`, and the same for LSQ and PRQ codes, while Flat, SQ and PQ codes search as asked. The
# refusal comes at the first search that filters, after training and adding all went well.
#
# Who is hit: retrieval that picks its index by a factory string from a configuration, and filters
# (by owner, by date, without removed documents) with a selector: isinstance(index, IndexIVF) is
# no test for it; a small trial search is.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q faiss-cpu==1.15.1 numpy==2.4.6
cd "$work"

cat > check.py <<'PY'
import faiss
import numpy as np

vectors = np.random.default_rng(0).standard_normal((1000, 8)).astype("float32")
first_hundred = faiss.SearchParametersIVF(sel=faiss.IDSelectorRange(0, 100), nprobe=4)


def build(description):
    index = faiss.index_factory(8, description)
    index.train(vectors)
    index.add(vectors)
    assert isinstance(index, faiss.IndexIVF), description
    return index


for description in ("IVF4,Flat", "IVF4,SQ8", "IVF4,PQ4x4"):
    ids = build(description).search(vectors[:5], 5, params=first_hundred)[1]
    print(f"{description} largest id: {ids.max()}")
    assert 0 <= ids.min() and ids.max() < 100

for description in ("IVF4,RQ2x4", "IVF4,LSQ2x4", "IVF4,PRQ2x2x4"):
    index = build(description)
    plain = index.search(vectors[:5], 5, params=faiss.SearchParametersIVF(nprobe=4))[1]
    assert plain.min() >= 0
    try:
        index.search(vectors[:5], 5, params=first_hundred)
    except RuntimeError as error:
        message = str(error)[str(error).index("Error: ") :]
        print(f"{description} is an IndexIVF: True; {message}")
        assert "id selector not supported for this index" in message
    else:
        raise SystemExit(f"{description} now takes a selector")
PY
"$work/venv/bin/python" check.py
echo "finding: faiss IVF indexes with RQ, LSQ or PRQ codes are IndexIVF and take SearchParametersIVF, but refuse its selector at the search"
