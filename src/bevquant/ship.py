"""The verbs ``export``, ``lint`` and ``eval``: the file that ships, made, judged and measured."""

from json import dumps
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Column, Table

from bevquant.data import preprocess
from bevquant.data.frame import Batch
from bevquant.data.nuscenes import NuScenesDataset
from bevquant.deploy.artefact import check_path, read
from bevquant.deploy.card import Card, Expected
from bevquant.deploy.export import export
from bevquant.deploy.lint import summary, verdicts
from bevquant.deploy.pack import NEEDS_LOADER, loader_note
from bevquant.deploy.qdq import FLOAT
from bevquant.deploy.runtime import load
from bevquant.deploy.size import FileSize
from bevquant.deploy.targets import Target, target_of
from bevquant.errors import BevquantError
from bevquant.evaluate import Metrics, evaluate, float_predictor, measure
from bevquant.files import check_regular, read_json, sha256, write_json
from bevquant.memory import keep_freed_memory
from bevquant.models.bevfusion import BEVFusion
from bevquant.models.zoo import network
from bevquant.progress import console
from bevquant.quant.policy import BitPolicy
from bevquant.quant.refinement.reconstruct import reconstruct
from bevquant.quant.refinement.refine import refine
from bevquant.quant.size import Size
from bevquant.quant.spec import Precision
from bevquant.run import SHIPPED, calibration_batches, deployable, load_small, quantize_small


def export_artefact(
    out: Path,
    data: Path,
    version: str,
    split: str,
    precision: str,
    checkpoint: Path | None,
    frames: int,
    ranges_only: bool,
    target: str,
    measure_on: str | None,
    widen: bool = False,
) -> FileSize:
    """Write the small BEVFusion to ``out``, quantized or, with precision ``float``, as it is.

    ``precision`` is one of all layers, or the JSON file of a policy. With ``ranges_only``
    stage 1 is all that is done; otherwise factors are searched and weights learned too.
    With ``measure_on`` the simulation is measured on that split, and what it measures is
    kept in the file. With ``widen`` weights of 4 and 2 bits are stored as int8. Prints what
    takes the room, how many layers run as integers, and whether an engine needs bevquant's
    loader to open the file.

    Raises:
        BevquantError: an argument, the data or a file cannot be used.
    """
    check_path(out)
    placed, policy = target_of(target), _policy(precision)
    sweeps = preprocess.SMALL.sweeps
    dataset = NuScenesDataset(data, version, split, sweeps=sweeps)
    measured = NuScenesDataset(data, version, measure_on, sweeps=sweeps) if measure_on else None
    for each in (dataset, measured) if measured else (dataset,):
        _check(each, preprocess.SMALL)
    batches = calibration_batches(dataset, frames)
    model = load_small(checkpoint)
    stages = _quantize(model, batches, policy, placed, ranges_only) if policy else []
    recipe = {
        "network": "bevfusion_small",
        "checkpoint_sha256": sha256(checkpoint or SHIPPED),
        "precision": policy.to_json() if policy else FLOAT,
        "calibration": {"data": dataset.fingerprint(), "split": split, "frames": len(batches)},
        "stages": stages,
    }
    sample = model.prepare(batches[0])
    expected = _expected(model, measured) if measured else None
    size = export(
        model, sample, preprocess.SMALL, out,
        target=target, recipe=recipe, expected=expected, widen=widen,
    )  # fmt: skip
    console.print(_size_table(out, precision, size))
    _say(f"{summary(verdicts(read(out), placed), placed)}: bevquant lint {out}")
    if size.note:
        _say(f"{out.name}: {size.note}")
    return size


def lint_artefact(file: Path, target: str | None, *, as_json: bool = False) -> bool:
    """Print which layers of ``file`` would run as integers on ``target``, and why not.

    With ``as_json`` that is one JSON object: ``file``, ``target``, ``layers`` (``layer``,
    ``precision``, ``runs`` and ``reason`` of each), ``integers`` and ``quantized`` (how many
    are), ``needs_loader``, ``notes`` and ``ok``, which is what is returned.

    Returns:
        Whether some layer would, and no quantized one would run as float.

    Raises:
        BevquantError: the file is damaged, or there is no such target.
    """
    artefact = read(file)
    judge = target_of(target or artefact.card.target)
    found = verdicts(artefact, judge)
    ok = any(v.reason is None for v in found) and not any(v.falls_short for v in found)
    loader = loader_note([model for _, model in artefact.parts])
    notes = [f"{judge.name}: {judge.note}"] if judge.note else []
    notes += [f"{file.name}: {loader}"] if loader else []
    rows = [
        {"layer": v.layer, "precision": v.precision, "runs": v.runs, "reason": v.reason}
        for v in found
    ]
    if as_json:
        content = {
            "file": str(file),
            "target": judge.name,
            "layers": rows,
            "integers": sum(verdict.reason is None for verdict in found),
            "quantized": sum(verdict.precision != FLOAT for verdict in found),
            "needs_loader": loader == NEEDS_LOADER,
            "notes": notes,
            "ok": ok,
        }
        print(dumps(content, indent=1))
        return ok
    columns = (Column(name, overflow="fold") for name in ("layer", "in the file", "runs as", "why"))
    table = Table(*columns, title=escape(f"{file.name} on {judge.name}"))
    for row in rows:
        table.add_row(*(escape(text or "") for text in row.values()))
    console.print(table)
    _say(*notes, summary(found, judge))
    return ok


def _say(*lines: str) -> None:
    """Print lines as they are, whatever their length and characters."""
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False, markup=False)


def evaluate_artefact(
    file: Path,
    data: Path,
    version: str,
    split: str,
    limit: int | None,
    threads: int,
    json: Path | None,
    model: str = "bevfusion_small",
    old_boxes: bool | None = None,
) -> Metrics:
    """Measure a checkpoint or a deployed file, print the metrics, write them to ``json``.

    Beside those of a deployed file stands what its simulation measured on the same data,
    where the file knows that. ``model`` and ``old_boxes`` say what a checkpoint is of (see
    :func:`~bevquant.models.zoo.network`); a deployed file knows that itself.

    Raises:
        BevquantError: the file or the data cannot be used.
    """
    check_regular(file)
    torch.set_num_threads(threads)
    metrics: Metrics
    expected: Expected | None = None
    doing = f"evaluate {file.name}"
    if file.suffix in (".onnx", ".json"):
        deployed = load(file, threads=threads)
        settings = deployed.preprocess
        dataset = NuScenesDataset(data, version, split, sweeps=settings.sweeps, limit=limit)
        _check(dataset, settings)
        expected = _same_data(deployed.engine.card, dataset)
        metrics = evaluate(deployed, dataset, settings, description=doing)
    else:
        keep_freed_memory()
        net = network(model)
        settings, loaded = net.preprocess, net.load(file, old_boxes)
        dataset = net.dataset(data, version, split, limit=limit)
        _check(dataset, settings)
        metrics = measure(loaded, dataset, settings, description=doing)
    console.print(f"{file.name} on {split} of {data}", highlight=False)
    console.print(_metrics_table(metrics, expected))
    if json is not None:
        simulated = expected and expected.model_dump(mode="json")
        write_json(json, {**metrics.to_json(), "simulated": simulated})
    return metrics


def _check(dataset: NuScenesDataset, settings: preprocess.Preprocess) -> None:
    dataset.check()
    dataset.check_points(settings)


def _same_data(card: Card, dataset: NuScenesDataset) -> Expected | None:
    """Return what the simulation measured if it was on ``dataset``."""
    if card.expected is None or card.expected.data == dataset.fingerprint():
        return card.expected
    console.print(f"the simulation was measured on other frames, of {card.expected.split}")
    return None


def _policy(precision: str) -> BitPolicy | None:
    if precision == FLOAT:
        return None
    if precision.endswith(".json"):
        rules = read_json(Path(precision))
        if not isinstance(rules, dict) or not all(isinstance(v, str) for v in rules.values()):
            raise BevquantError(f'{precision}: not a policy, {{"*": "W4A8", "head.*": "float"}}')
        return BitPolicy.from_json(rules)
    return deployable(Precision.parse(precision))


def _quantize(
    model: BEVFusion, batches: list[Batch], policy: BitPolicy, target: Target, ranges_only: bool
) -> list[str]:
    """Quantize ``model`` in place, and return the stages that did it."""
    quantize_small(model, batches, policy, target.scheme)
    if ranges_only:
        return ["calibrate"]
    refine(model, batches)
    reconstruct(model, batches)
    return ["calibrate", "refine", "reconstruct"]


def _expected(model: BEVFusion, dataset: NuScenesDataset) -> Expected:
    predict = float_predictor(model)
    metrics = evaluate(predict, dataset, preprocess.SMALL, description="simulated")
    return Expected(
        data=dataset.fingerprint(),
        split=dataset.split,
        frames=metrics.frames,
        NDS=metrics.NDS,
        mAP=metrics.mAP,
    )


def _size_table(out: Path, precision: str, size: Size) -> Table:
    table = Table("part", "bytes", "share", title=f"{out.name}: {precision}")
    rows: dict[str, Any] = {
        "weights of quantizable layers": size.weights,
        "scales and zero points": size.scales,
        "what is never quantized": size.rest,
        "graph": size.graph,
        "all": size.total,
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}", f"{count / size.total:.1%}")
    return table


def _metrics_table(metrics: Metrics, expected: Expected | None) -> Table:
    """Return a row for each figure: occupancy has too many classes for a row of columns."""
    columns = [{**metrics.summary(), "frames": metrics.frames}]
    columns += [expected.model_dump()] if expected is not None else []
    names = ("measured", "simulated")[: len(columns)]
    table = Table("", *(Column(name, justify="right") for name in names))
    for figure in columns[0]:
        values = [column.get(figure, "") for column in columns]
        table.add_row(figure, *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in values))
    return table
