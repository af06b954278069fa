"""report.html: what report.json holds, as one page with the pictures inside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from roma_ds.monitor import markup
from roma_ds.monitor.figures import Picture
from roma_ds.monitor.markup import Html
from roma_ds.monitor.run_folder import Run
from roma_ds.monitor.wording import (
    byte_size,
    count,
    duration,
    in_order,
    p_value,
    percent,
    points,
    variant_title,
)

Report = Mapping[str, Any]

_METRICS = (
    ("knn_overlap", "k-NN overlap", "nearest tasks that are also nearest in routing; higher is better"),
    ("cka", "CKA", "linear kernel alignment of the two spaces; higher is better"),
    ("trustworthiness", "trustworthiness", "1 when near in routing means near as tasks; higher is better"),
    ("mean_sq_distance", "mean squared distance", "of routing weights to the nearest tasks; lower is better"),
)


def render(report: Report, run: Run, pictures: Mapping[str, Picture]) -> str:
    """The page as text; self-contained."""
    model = report["model"].get("path") or run.folder.name
    sections = [
        markup.section("verdict", "", *_verdict(report), kind="verdict"),
        markup.section(
            "cautions", "Before you trust this", markup.listing(report["cautions"]), kind="caution"
        ),
        markup.cards(_headline(report)),
        markup.section("results", "Results", *_results(report), *_pictures(pictures, "variants", "answers")),
        markup.section("training", "Training", *_training(report), *_pictures(pictures, "training")),
        markup.section(
            "routing",
            "Routing",
            *_alignment(report),
            *_pictures(pictures, "projection", "routing", "expert_load"),
        ),
        markup.section("timings", "Timings", *_timings(report)),
        markup.section("reproduce", "Reproduce", *_reproduce(report, run)),
        markup.section("notes", "What is missing here", markup.listing(report["notes"]), kind="notes"),
    ]
    names = ("results", "training", "routing", "timings", "reproduce")
    links = "".join(
        f'<a href="#{name}">{name.capitalize()}</a>' for name in names if f'id="{name}"' in "".join(sections)
    )
    folder = f"{model} · {run.folder}"
    head = f"<header><h1>RoMA report</h1><p>{markup.text(folder)}</p></header><nav>{links}</nav>\n"
    return markup.document(f"RoMA report: {model}", head + "".join(sections))


def _verdict(report: Report) -> list[str]:
    first, *others = report["verdict"]
    return [markup.paragraph(first, "lead"), *(markup.paragraph(other) for other in others)]


def _headline(report: Report) -> list[tuple[object, object]]:
    variants, training = report["variants"], report["training"]
    shown: list[tuple[object, object]] = [
        (f"{variant_title(name)}, mean accuracy", f"{percent(variants[name]['average'])}%")
        for name in in_order(list(variants))
        if variants[name]["average"] is not None and name != "oracle"
    ]
    trainable, total = training["trainable_parameters"], training["total_parameters"]
    if trainable and total:
        shown.append(("of all parameters trained", f"{100 * trainable / total:.4f}%"))
    if training["seconds"]["train"] is not None:
        shown.append(("training", duration(training["seconds"]["train"])))
    return shown


def _results(report: Report) -> list[str]:
    variants = {
        name: report["variants"][name]
        for name in in_order(list(report["variants"]))
        if report["variants"][name]["tasks"]
    }
    if not variants:
        return [markup.paragraph("No variant was evaluated.")]
    rows = []
    for name, entry in variants.items():
        compared = entry["compared"]
        rows.append(
            [
                variant_title(name),
                percent(entry["average"]),
                *_difference(compared.get("base")),
                *_difference(compared.get("router_tuning")),
                count(sum(task.get("n") or 0 for task in entry["tasks"].values())),
            ]
        )
    head = [
        "variant",
        "mean accuracy, %",
        "to base, points",
        "p",
        "to router tuning, points",
        "p",
        "questions",
    ]
    strong = [place for place, name in enumerate(variants) if name == "roma"]
    return [
        markup.table(head, rows, strong),
        markup.paragraph(
            "Mean over tasks. Differences are on the same questions, in percentage points with their 95% "
            "bootstrap interval; p is the exact McNemar test over all questions, or, where tasks differ in "
            "size, a paired permutation test in which each task weighs the same. Coloured: both agree at 5%.",
            "muted",
        ),
        "<h3>By task</h3>",
        _by_task(variants),
    ]


def _by_task(variants: Mapping[str, Any]) -> Html:
    tasks = list(dict.fromkeys(task for entry in variants.values() for task in entry["tasks"]))
    compared = variants.get("roma", {}).get("compared", {})
    references = [name for name in ("base", "router_tuning") if name in compared]
    head: list[object] = ["task", "n", "most common answer"]
    head += [variant_title(name) for name in variants]
    head += [f"RoMA to {variant_title(name)} (p)" for name in references]
    rows = []
    for task in tasks:
        results = [entry["tasks"].get(task, {}) for entry in variants.values()]
        known = next(result for result in results if result)
        row: list[object] = [task, count(known.get("n")), percent(known.get("majority_baseline"))]
        row += [_accuracy(result) for result in results]
        for name in references:
            difference, p = _difference(compared[name]["tasks"].get(task))
            row.append(markup.join([difference, markup.small(f"({p})")]) if p else "–")
        rows.append(row)
    return markup.table(head, rows, dense=True)


def _accuracy(result: Mapping[str, Any]) -> Html:
    error = result.get("stderr")
    shown = percent(result.get("accuracy"))
    return (
        markup.join([shown, markup.small(f"±{100 * error:.1f}")]) if error is not None else markup.text(shown)
    )


def _difference(compared: Mapping[str, Any] | None) -> tuple[object, object]:
    """Cells for the difference with its interval, and for p."""
    if not compared:
        return "", ""
    sign = "muted" if not compared["decided"] else "good" if compared["difference"] > 0 else "bad"
    interval = markup.small(f"[{points(compared['low'])}, {points(compared['high'])}]")
    shown = Html(f'<span class="{sign}">{points(compared["difference"])}</span> {interval}')
    return shown, p_value(compared["p_value"])


def _training(report: Report) -> list[str]:
    model, training = report["model"], report["training"]
    trainable, total = training["trainable_parameters"], training["total_parameters"]
    samples, before, after = (training[key] for key in ("samples", "successful_before", "successful_after"))
    share = f" of {count(total)} ({100 * trainable / total:.4f}%)" if trainable and total else ""
    layers = model.get("trained_layers")
    rows: list[tuple[object, object]] = [
        ("model", " · ".join(str(model[key]) for key in ("path", "family", "dtype") if model.get(key))),
        ("routers of layers", ", ".join(map(str, layers)) if layers else "–"),
        ("trained parameters", count(trainable) + share),
        ("training samples", count(samples)),
        ("answered right before training (S)", _share(before, samples)),
        *_judged(training.get("answers") or {}),
        ("answered right after training", _share(after, samples)),
        ("steps", count(training["steps"])),
        ("ranks", _dash(training["world_size"])),
        ("ZeRO stage", _dash(training["zero_stage"])),
        ("tokens per second", count(training["tokens_per_second"])),
        ("peak memory per rank", byte_size(training["peak_memory_bytes"])),
    ]
    return [markup.facts(rows)]


def _judged(answers: Mapping[str, Any]) -> list[tuple[object, object]]:
    """By dataset whose samples are judged by generated answers, how, and how that went."""
    return [
        (
            f"right of {name}",
            f"by {facts['how']}: {percent(facts['right'])}% of {count(facts['answers'])} answers right, "
            f"{percent(facts['unread'])}% unread, {percent(facts['unfinished'])}% cut off",
        )
        for name, facts in answers.items()
    ]


def _alignment(report: Report) -> list[str]:
    aligned = report["alignment"]
    if aligned["before"]["cka"] is None and aligned["after"]["cka"] is None:
        return [markup.paragraph("Alignment was not measured.", "muted")]
    rows = []
    for key, title, meaning in _METRICS:
        before, after = aligned["before"][key], aligned["after"][key]
        change = "–" if before is None or after is None else f"{after - before:+.4f}".replace("-", "−")
        cells = ["–" if value is None else f"{value:.4f}" for value in (before, after)]
        rows.append([Html(f"{title}<br>{markup.small(meaning)}"), *cells, change])
    return [
        markup.table(["alignment of routing with the tasks", "before", "after", "change"], rows),
        markup.paragraph(
            f"On the {count(aligned['samples'])} evaluation samples (at most 2,000, copies left out), "
            f"trained layers, k = {aligned['neighbours']}; before: base model, after: RoMA.",
            "muted",
        ),
    ]


def _timings(report: Report) -> list[str]:
    seconds = {stage: value for stage, value in report["training"]["seconds"].items() if value is not None}
    if not seconds:
        return []
    longest = max(*seconds.values(), 1e-9)
    rows = [
        [
            stage,
            duration(value),
            Html(f'<div class="bar"><i style="width:{100 * value / longest:.1f}%"></i></div>'),
        ]
        for stage, value in seconds.items()
    ]
    return [markup.table(["stage", "time", ""], rows)]


def _reproduce(report: Report, run: Run) -> list[str]:
    parts: list[str] = [markup.preformatted("\n".join(report["commands"]))] if report["commands"] else []
    if report["config_hash"]:
        parts.append(markup.paragraph(f"Config hash {report['config_hash']}.", "muted"))
    if run.environment:
        parts.append(markup.folded("Environment", markup.facts(_flat(run.environment))))
    if run.config_text:
        parts.append(
            markup.folded("Config in full (config.resolved.yaml)", markup.preformatted(run.config_text))
        )
    return parts


def _pictures(pictures: Mapping[str, Picture], *names: str) -> list[str]:
    found = [pictures[name] for name in names if name in pictures]
    return [markup.picture(item.path, item.title, item.caption) for item in found]


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[object, object]]:
    rows: list[tuple[object, object]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{key}.")
        else:
            shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            rows.append((prefix + str(key), shown))
    return rows


def _share(part: int | None, whole: int | None) -> str:
    if part is None:
        return "not measured"
    return count(part) + (f" ({percent(part / whole)}%)" if whole else "")


def _dash(value: object) -> str:
    return "–" if value is None else str(value)
