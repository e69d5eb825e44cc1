"""The command line: one thin verb per capability."""

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from bevquant.errors import BevquantError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""

app = typer.Typer(
    name="bevquant",
    help="Quantize camera-LiDAR perception networks, and measure what they still see.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bevquant {version('bevquant')}")
        raise typer.Exit


@app.callback()
def bevquant(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Quantize camera-LiDAR perception networks, and measure what they still see."""


Data = Annotated[Path, typer.Option(help="Folder of a nuScenes-format data set.")]
Version = Annotated[str, typer.Option(help="Version folder, for instance v1.0-world.")]
Split = Annotated[str, typer.Option(help="Split, for instance world_val.")]
Target = Annotated[str, typer.Option(help="openvino, onnxruntime, tensorrt or literal.")]
Limit = Annotated[int | None, typer.Option(help="Only the first N frames.", min=1)]


@app.command()
def world(
    directory: Annotated[Path, typer.Argument(help="Folder to make; must be empty or absent.")],
    scenes: Annotated[int, typer.Option(min=1)] = 20,
    keyframes: Annotated[int, typer.Option(min=2, help="Key frames a scene.")] = 10,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    labels: Annotated[
        bool, typer.Option("--labels", help="Map and occupancy labels too; twice the time.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
) -> None:
    """Generate a driving data set in the nuScenes schema."""
    from bevquant.data.world.generate import generate
    from bevquant.data.world.settings import WorldSettings

    settings = WorldSettings(scenes=scenes, keyframes=keyframes, seed=seed, labels=labels)
    generate(directory, settings, jobs)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="Recipe, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME].")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Worker processes for the data.")] = 2,
) -> None:
    """Train a float network; stopped at any moment, the same command continues."""
    from bevquant.run import train_from

    train_from(recipe, out, jobs)


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(help="Recipe of an experiment, a YAML file.")],
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/RECIPE].")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes [default: cores].")] = None,
) -> None:
    """Regenerate the tables and figures that a recipe names; stopped, it continues."""
    from bevquant.experiments.start import run_recipe
    from bevquant.experiments.variants import cores

    run_recipe(recipe, out or Path("runs") / recipe.stem, jobs or cores())


@app.command("eval")
def evaluate_file(
    file: Annotated[
        Path, typer.Argument(help="Deployed .onnx or .json, or a checkpoint: .safetensors, .pth.")
    ],
    data: Data,
    version: Version = "v1.0-world",
    split: Split = "world_val",
    limit: Limit = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
    json: Annotated[Path | None, typer.Option(help="Write the figures here too.")] = None,
    model: Annotated[
        str,
        typer.Option(
            help="What the checkpoint is of: bevfusion, bevfusion_small, bevfusion_seg, ..."
        ),
    ] = "bevfusion_small",
    old_boxes: Annotated[
        bool | None,
        typer.Option(
            "--old-boxes/--new-boxes",
            help="Box convention of a .pth, before or since mmdetection3d 1.0 [default: by its "
            "parameter names].",
        ),
    ] = None,
) -> None:
    """Measure the very file that ships, or a float checkpoint, with the metric of its task."""
    from bevquant.ship import evaluate_artefact

    evaluate_artefact(file, data, version, split, limit, threads, json, model, old_boxes)


@app.command("layers")
def list_layers_of(
    model: Annotated[str, typer.Argument(help="bevfusion, bevfusion_small, bevfusion_seg, ...")],
    everything: Annotated[
        bool, typer.Option("--all", help="Also the layers that the thesis leaves float.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="Write the table here too.")] = None,
) -> None:
    """List the layers that can be quantized, with weights, MACs and main module."""
    from bevquant.listing import list_layers

    list_layers(model, everything=everything, json=json)


@app.command()
def look(
    data: Data,
    version: Version = "v1.0-world",
    split: Split = "world_val",
    frame: Annotated[int, typer.Option(min=0, help="Position in the split.")] = 0,
    out: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("frame.png"),
    model: Annotated[
        str | None,
        typer.Option(help="Draw the map or voxels that this network finds, beside the labels."),
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
) -> None:
    """Draw a frame: LiDAR points and annotated boxes on the six images and from above."""
    from bevquant.run import look_at_frame, look_at_labels

    if model is None:
        look_at_frame(data, version, split, frame, out)
    else:
        look_at_labels(model, checkpoint, data, version, split, frame, out)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(help="X.onnx: one file. X.json: one a main module.")],
    data: Data,
    version: Version = "v1.0-world",
    split: Annotated[str, typer.Option(help="Split to calibrate on.")] = "world_train",
    precision: Annotated[str, typer.Option(help="W8A8, ..., float, or a policy's JSON.")] = "W8A8",
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
    frames: Annotated[int, typer.Option(min=1, help="Calibration frames.")] = 20,
    ranges_only: Annotated[
        bool, typer.Option("--ranges-only", help="No refined factors, no learned weights.")
    ] = False,
    target: Target = "openvino",
    measure_on: Annotated[
        str | None, typer.Option(help="Split to measure the simulation on, for the file's card.")
    ] = None,
    widen: Annotated[
        bool,
        typer.Option("--widen", help="4- and 2-bit weights as int8: any engine opens the file."),
    ] = False,
) -> None:
    """Quantize the small BEVFusion and write the packed file an engine runs."""
    from bevquant.ship import export_artefact

    export_artefact(
        out, data, version, split, precision, checkpoint, frames, ranges_only, target, measure_on,
        widen,
    )  # fmt: skip


@app.command("lint")
def lint_file(
    file: Annotated[Path, typer.Argument(help="Exported .onnx, or the .json of several.")],
    target: Annotated[str | None, typer.Option(help="[default: the file's own]")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit code 1 if a quantized layer, or every layer, runs as float."
        ),
    ] = False,
) -> None:
    """List which layers of a file would not run as integers on an engine, and why."""
    from bevquant.ship import lint_artefact

    if not lint_artefact(file, target, as_json=json) and strict:
        raise typer.Exit(1)


@app.command()
def bench(
    files: Annotated[list[Path], typer.Argument(help="Deployed .onnx files; the first is 1.00x.")],
    data: Data,
    version: Version = "v1.0-world",
    split: Split = "world_val",
    threads: Annotated[str, typer.Option(help="Of the engine, with commas.")] = "1",
    runs: Annotated[int, typer.Option(min=3, help="Interleaved runs of each file.")] = 20,
    bf16: Annotated[bool, typer.Option("--bf16", help="The first file in bfloat16, too.")] = False,
    json: Annotated[Path | None, typer.Option(help="Write all figures here too.")] = None,
) -> None:
    """Compare deployed files stage by stage: latency with spread, memory, size, interleaved."""
    from bevquant.speed import bench_artefacts

    bench_artefacts(files, data, version, split, _counts(threads), runs, bf16, json)


@app.command()
def latency(
    out: Annotated[Path, typer.Option(help="JSON file to write, for search --latency.")],
    data: Data,
    version: Version = "v1.0-world",
    split: Annotated[str, typer.Option(help="Split of the frames.")] = "world_train",
    frames: Annotated[int, typer.Option(min=1, help="Frames, evenly spread.")] = 4,
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 1,
    runs: Annotated[int, typer.Option(min=3, help="Interleaved runs of each network.")] = 20,
) -> None:
    """Measure each layer of the small BEVFusion on the engine, in float and in integers."""
    from bevquant.speed import measure_latency

    measure_latency(out, data, version, split, frames, checkpoint, threads, runs)


@app.command()
def sensitivity(
    data: Data,
    out: Annotated[Path, typer.Option(help="Folder for rows, table and picture.")],
    version: Version = "v1.0-world",
    split: Split = "world_val",
    frames: Annotated[int, typer.Option(min=1, help="Frames, evenly spread.")] = 4,
    bits: Annotated[str, typer.Option(help="Precisions with commas.")] = "W2A8,W4A8,W8A8",
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Quantize each layer of the small BEVFusion alone; stopped, the same command continues."""
    from bevquant.analyse import analyse_sensitivity

    analyse_sensitivity(out, data, version, split, frames, bits, checkpoint, threads)


@app.command()
def debug(
    data: Data,
    version: Version = "v1.0-world",
    split: Split = "world_val",
    frames: Annotated[int, typer.Option(min=1, help="Frames, evenly spread.")] = 2,
    precision: Annotated[str, typer.Option(help="W8A8, W4A8, W2A8, ...")] = "W8A8",
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
    threads: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    """Name the first layer of the small BEVFusion that is not finite or drowns in noise."""
    from bevquant.analyse import analyse_faults

    analyse_faults(data, version, split, frames, precision, checkpoint, threads)


search_app = typer.Typer(invoke_without_command=True, no_args_is_help=True)
app.add_typer(search_app, name="search")


@search_app.callback()
def search(
    context: typer.Context,
    data: Annotated[Path | None, typer.Option(help="Folder of a nuScenes-format data set.")] = None,
    out: Annotated[Path, typer.Option(help="Run folder; holds the ledger.")] = Path("runs/search"),
    version: Version = "v1.0-world",
    split: Annotated[str, typer.Option(help="Split of all frames.")] = "world_train",
    frames: Annotated[int, typer.Option(min=1, help="Frames to compare on.")] = 4,
    calibration: Annotated[int, typer.Option(min=1, help="Frames to calibrate on.")] = 20,
    checkpoint: Annotated[Path | None, typer.Option(help="[default: the shipped one]")] = None,
    strategy: Annotated[str, typer.Option(help="default, ilp, bayes, nsga2, random.")] = "default",
    evaluations: Annotated[int | None, typer.Option(min=1, help="[default: its own]")] = None,
    cost: Annotated[str, typer.Option(help="weight_bits,bytes,bops, with commas.")] = "weight_bits",
    latency: Annotated[Path | None, typer.Option(help="JSON: layer -> W8A8 -> ms.")] = None,
    error: Annotated[str, typer.Option(help="box, cosine or mse.")] = "box",
    space: Annotated[str, typer.Option(help="all layers, or those of the thesis.")] = "all",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes, one core each.")] = 1,
    executor: Annotated[str, typer.Option(help="processes, or ray.")] = "processes",
    address: Annotated[str, typer.Option(help="Of the Ray cluster.")] = "auto",
) -> None:
    """Find the best bit-widths of the layers; stopped at any moment, the same command continues."""
    if context.invoked_subcommand is not None:
        return
    from bevquant.mixed import search_small

    if data is None:
        raise BevquantError("search: --data is missing: the folder of a data set")
    costs = cost.split(",")
    search_small(
        out, data, version, split, frames, calibration, checkpoint, strategy, evaluations, costs,
        latency, error, space, seed, executor, workers, address,
    )  # fmt: skip


@search_app.command("status")
def search_status(
    run: Annotated[Path, typer.Argument(help="Run folder of a search, or its ledger.")],
) -> None:
    """Show progress, best points and ETA of a running search."""
    from bevquant.search.status import print_status

    print_status(run / "ledger.sqlite" if run.is_dir() else run)


@search_app.command("pick")
def search_pick(
    run: Annotated[Path, typer.Argument(help="Run folder of a finished search.")],
    policy: Annotated[Path, typer.Argument(help="JSON file to write, for export --precision.")],
    under: Annotated[float | None, typer.Option(help="Most of the first cost, of float's.")] = None,
    max_drop: Annotated[float | None, typer.Option(help="Greatest error.")] = None,
    error_first: Annotated[
        bool, typer.Option("--error-first", help="Smallest error. [default: the knee]")
    ] = False,
) -> None:
    """Write the bit-widths of one point of a front."""
    from bevquant.pick import pick

    pick(run, policy, under, max_drop, error_first)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of everything the demo makes.")] = Path("demo"),
    quick: Annotated[bool, typer.Option(help="Fewer frames, under two minutes.")] = False,
) -> None:
    """From the shipped float BEVFusion to a measured, deployed INT8 file and a report."""
    from bevquant.demo.road import run_demo

    run_demo(out, quick)


def _counts(threads: str) -> list[int]:
    try:
        counts = [int(each) for each in threads.split(",")]
    except ValueError:
        counts = [0]
    if min(counts) < 1:
        raise BevquantError(f"--threads {threads}: give numbers from 1 with commas, such as 1,2")
    return counts


def main() -> None:
    """Run the command line; a user's mistake is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except TyperException as error:
        if not error.format_message():  # a verb without arguments: its help has been printed
            sys.exit(error.exit_code)
        _refuse(error.format_message())
    except BevquantError as error:
        _refuse(str(error))
    if code == INTERRUPTED:
        print("bevquant: interrupted; the same command continues", file=sys.stderr)
    sys.exit(code or 0)


def _refuse(message: str) -> NoReturn:
    print(f"bevquant: {message}", file=sys.stderr)
    sys.exit(2)
