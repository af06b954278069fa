#!/usr/bin/env bash
# Version: lm_eval==0.4.13
#
# A task with 40 training rows is asked with --num_fewshot 5, by the harness's own dummy model, and the texts that
# the model was given are compared: once as task files are usually written, once with
# `fewshot_config: {sampler: first_n}`.
#
# Expected: "5-shot" means five solved examples before every question, the same ones.
# Seen, `6 questions: 6 different blocks of examples by default, 1 under first_n; on two ranks 5 of 6 questions have
# other examples than on one`: the default sampler draws anew for each question, from one generator that goes on,
# and each rank draws for its own questions alone. What stands before a question depends on how many were asked
# before it in the same process.
#
# Who is hit: whoever compares few-shot scores from 1 and from 8 GPUs, or a question between runs over other parts
# of a task; and caches of shared prefixes, which find nothing common to two questions: a 25-shot run costs what
# all its tokens cost.
# A way out: `sampler: first_n` in the task's file, as MMLU's has it.
set -euo pipefail
unset PYTHONPATH
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q lm_eval==0.4.13
cd "$work"

mkdir tasks
python3 - <<'PY'
import json

for name, count in (("train", 40), ("test", 6)):
    with open(f"{name}.jsonl", "w") as file:
        for n in range(count):
            print(json.dumps({"q": f"{name} {n}: even or odd?", "options": ["even", "odd"], "label": n % 2}), file=file)
for name, sampler in (("usual", "default"), ("first", "first_n")):
    with open(f"tasks/{name}.yaml", "w") as file:
        file.write(f"""task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{train: train.jsonl, test: test.jsonl}}}}
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: label
doc_to_choice: options
fewshot_config: {{sampler: {sampler}}}
metric_list: [{{metric: acc}}]
""")
PY
cat > check.py <<'PY'
import lm_eval
from lm_eval.tasks import TaskManager, get_task_dict

manager = TaskManager(include_path="tasks", include_defaults=False)


def blocks(task, limit=None):
    """What stands before the question, by question."""
    found = lm_eval.simple_evaluate(
        model="dummy", tasks=[task], num_fewshot=5, task_manager=manager, limit=limit, bootstrap_iters=0,
        log_samples=True,
    )
    samples = sorted(found["samples"][task], key=lambda sample: sample["doc_id"])
    texts = [sample["arguments"][0][0] for sample in samples]
    return [text[: text.index("test ")] for text in texts]


def on_ranks(ranks):
    """The same by question, as each of several ranks prepares its own."""
    found = {}
    for rank in range(ranks):
        task = get_task_dict(["usual"], manager)["usual"]
        task.set_config(key="num_fewshot", value=5)
        task.set_fewshot_seed(seed=1234)
        task.build_all_requests(rank=rank, world_size=ranks)
        found.update({one.doc["q"]: one.args[0].partition("test ")[0] for one in task.instances})
    return found


usual, first = blocks("usual"), blocks("first")
assert all(block.count("train ") == 5 for block in usual + first)
alone, shared = on_ranks(1), on_ranks(2)
assert alone.keys() == shared.keys() and list(alone.values()) == usual
moved = sum(alone[question] != shared[question] for question in alone)
print(f"{len(usual)} questions: {len(set(usual))} different blocks of examples by default, "
      f"{len(set(first))} under first_n; on two ranks {moved} of {len(alone)} questions have other examples than on one")
assert len(set(usual)) == len(usual) == 6 and len(set(first)) == 1 and moved > 2
PY
HF_HOME="$work/cache" HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 "$work/venv/bin/python" check.py
echo "finding: lm-eval's default few-shot sampler draws other examples for every question, and others again on another number of ranks, unless the task says sampler: first_n"
