"""What the figures say, in words; nothing here claims more than was measured."""

from bevquant.report.results import DeployedMetrics, Results


def summary(results: Results) -> str:
    """Return what the deployed file keeps, how fast it is and how much it weighs."""
    deployed = results.deployed
    size = deployed.file_bytes / deployed.fp32_file_bytes
    return (
        f"Deployed as {deployed.precision}, the network {_kept(results)}, "
        f"{_speed(deployed)} in {deployed.engine}, and its file is {size:.2f} of the size."
    )


def scope(results: Results) -> str:
    """Return what the figures were measured on, and how far they carry."""
    data, quick = results.dataset, results.provenance.quick
    kind = {
        "generated world": "a generated world, not nuScenes: the figures are that world's own",
        "recorded drives": "recorded drives",
    }[data.kind]
    rough = " This was a quick run: so few frames give rough figures." if quick else ""
    return (
        f"Measured on {data.frames} key frames of {data.scenes} scenes of {data.name} "
        f"({data.split}), {kind}.{rough}"
    )


def verdict(results: Results) -> str:
    """Return how many of the goals hold."""
    held = sum(claim.holds for claim in results.claims)
    return f"{held} of {len(results.claims)} goals hold"


def _kept(results: Results) -> str:
    before, after = results.float_.NDS, results.deployed.NDS
    if not before:
        return f"scores {after:.3f} NDS where the float one scores 0"
    return f"keeps {after / before:.1%} of its NDS ({after:.3f} of {before:.3f})".replace("%", " %")


def _speed(deployed: DeployedMetrics) -> str:
    gain = deployed.fp32_latency_ms - deployed.latency_ms
    if abs(gain) <= max(deployed.latency_spread_ms, deployed.fp32_latency_spread_ms):
        return "is as fast as FP32 within the spread of the timing"
    if gain > 0:
        return f"is {deployed.fp32_latency_ms / deployed.latency_ms:.1f}x faster than FP32"
    return f"is {deployed.latency_ms / deployed.fp32_latency_ms:.1f}x slower than FP32"
