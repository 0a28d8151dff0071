# SPDX-License-Identifier: Apache-2.0
"""From numbers of all boundaries and layers to sentences: first NaN, first layer that is wrong, what explains it."""

from . import picture
from .finding import Report, counted, some

SATURATED = 0.001  # part of all blocks
GROWTH = 1000  # times from one layer to the next
KINDS = (
    (("gate", "router"), "the router"),
    (("experts", "routed_experts"), "the MoE output"),
    (("shared_experts",), "the shared experts' output"),
    (("attn", "self_attn", "mixer", "attention"), "the attention output"),
    (("mlp", "ffn", "moe"), "the MLP's or MoE's output"),
)
ADVICE = "Set NVFP4_MOE_DISABLE=1: if it stays, the cause is in the files or before the experts; if it goes, report it."


def kind(name: str) -> str:
    """What a module is called in sentences."""
    last = name.partition("[")[0].rpartition(".")[2]
    return next((words for names, words in KINDS if last in names), name)


def table(report: Report, rows: list[dict], experts: list[dict]) -> None:
    """A line for each layer: sizes of what leaves its attention, its MoE and itself."""
    agreement = {found["layer"]: found for found in experts[0]["layers"] if "cosine" in found}
    uncompared = {found["layer"]: found["why"] for found in experts[0]["layers"] if found["verdict"] == "not compared"}
    report.fact("mode of the experts", f"{experts[0]['mode']}, {counted(len(experts), 'rank')}")
    prompt = [row for row in rows if row["step"] == 0]
    for layer in sorted({row["layer"] for row in prompt}):
        if layer < 0:
            continue
        parts = []
        for row in prompt:
            name = row["name"].partition(".layers.")[2] or row["name"].partition("layers.")[2]
            if row["layer"] == layer and "[" not in name and name.count(".") <= 1:
                finite = row["nan"] + row["inf"] < row["numel"]
                sizes = f"{row['rms']:.3g}/{max(-row['min'], row['max']):.3g}" if finite else "not finite"
                parts.append(f"{name.partition('.')[2] or 'out'} {sizes}")
        if layer in agreement:
            parts.append(f"cosine {agreement[layer]['cosine']:.6f}, error {agreement[layer]['error']:.1e}")
        if layer in uncompared:
            parts.append(f"experts not compared: {uncompared[layer]}")
        report.fact(f"layer {layer} rms/amax", ", ".join(parts))


def first_not_finite(report: Report, tables: list[list[dict]], experts: list[dict]) -> None:
    """The first boundary that has a NaN or an infinity, on the rank that makes it: sums over ranks pass it to all."""
    first = []
    for rank, rows in enumerate(tables):
        at = next((at for at, row in enumerate(rows) if row["nan"] or row["inf"]), None)
        if at is not None:
            first.append((at, bisected(experts[rank], rows[at]["layer"]) is None, rank))
    if not first:
        return
    at, _, rank = min(first)
    rows = tables[rank]
    row, before = rows[at], rows[at - 1] if at else None
    what = "NaN" if row["nan"] else "infinity"
    index = int(row["first_nan" if row["nan"] else "first_inf"])
    of_rank = f" on rank {rank}" if len(tables) > 1 else ""
    step = "the prompt" if row["step"] == 0 else "decoding"
    where = f"layer {row['layer']} in {kind(row['name'])}" if row["layer"] >= 0 else row["name"]
    routers = [r for r in rows[:at] if r["layer"] == row["layer"] and kind(r["name"]) == "the router"]
    finite = "router still finite" if routers else f"{before['name']} before it is finite" if before else "first of all"
    ill = bisected(experts[rank], row["layer"])
    report.fault(
        "first-not-finite",
        f"first {what}{of_rank} in {step} at {where} ({row['name']}, element {index}, "
        f"{int(row['nan'] + row['inf'])} of {int(row['numel'])}); {finite}, {at} boundaries before are",
        f"a numerical fault of layer {row['layer']}'s experts, not of routing{alone(ill)}"
        if ill
        else f"what computes {row['name']} makes it of finite inputs, or its weights are not finite.",
        "Download the files again." if ill and any(ill["files"].values()) else ADVICE,
    )


def bisected(rank: dict, layer: int) -> dict | None:
    """What asking this rank's experts one by one found, if that is its first layer that is not finite."""
    found = next((found for found in rank["layers"] if found["verdict"] == "not finite"), None)
    return found if found is not None and found["layer"] == layer else None


def alone(found: dict) -> str:
    """`; expert 17 alone produces it, in gate or up: ...`"""
    names = [f"expert {number} alone produces it, in its {gemm}" for number, gemm in found["experts"].items()]
    files = [text for text in found["files"].values() if text]
    reason = f". The file says: {files[0]}" if files else ""
    return f"; {some(names)}{reason}." if names else "; no expert alone produces it: combining does."


def moe(report: Report, experts: list[dict]) -> None:
    """The first layer on each rank that is not its files' experts."""
    for rank in experts:
        of_rank = f" on rank {rank['rank']}" if len(experts) > 1 else ""
        healthy = [found for found in rank["layers"] if found["verdict"] == "healthy"]
        for found in rank["layers"]:
            if found["verdict"] == "unread":
                means = f"{found['name']} cannot be compared."
                report.fault("unread-experts", found["why"], means, "Ask doctor checkpoint.")
                break
        damaged = next((found for found in rank["layers"] if found["verdict"] == "memory"), None)
        if damaged:
            report.fault(
                "weights-in-memory",
                f"layer {damaged['layer']}{of_rank}: {damaged['why']}; 0 are right, and loading refuses others",
                "weights were damaged behind the loader: kernels make a wrong number of such a scale, and no NaN.",
                "Look for what writes into parameters: a reload, an update in training, a merge.",
            )
        routers(report, rank["layers"], of_rank)
        wrong = [found for found in rank["layers"] if found["verdict"] == "wrong"]
        if not wrong:
            continue
        first = wrong[0]
        cause = first["cause"]
        names = [f"expert {number} ({error:.2g})" for number, error in (first["experts"] or {}).items()]
        memory = "".join(f" In memory {text}." for text in list(first.get("memory", {}).values())[:1])
        report.fault(
            "experts-wrong",
            f"layer {first['layer']}'s MoE output{of_rank} ({first['trial']}) has cosine {first['wrong_cosine']:.4f} "
            f"and error {first['wrong_error']:.2g} against its files' experts; healthy: below 0.02 in bf16. "
            f"{len(wrong)} of {len(rank['layers'])} layers are wrong, {len(healthy)} agree",
            f"{cause}: with that the reference agrees to {first['cause_error']:.2g}."
            if cause
            else f"{some(names)} alone give it.{memory}"
            if names
            else "each expert alone is right: combining or mapping is wrong.",
            ADVICE,
        )


def routers(report: Report, layers: list[dict], of_rank: str) -> None:
    """Ids out of range, and weights that are no numbers."""
    for found in layers:
        router = found.get("router")
        nan_is_older = any(finding.name == "first-not-finite" for finding in report.findings)
        if router and (router["outside"] or (not router["finite"] and not nan_is_older)):
            report.fault(
                "router",
                f"layer {found['layer']}'s router{of_rank} gives {router['outside']} ids out of range, weights "
                f"{'finite' if router['finite'] else 'not finite'}; 0 ids and finite weights are right",
                "tokens go to experts that there are not, or vanish.",
                "Look at the gate, its bias and the expert map.",
            )
            return


def counters(report: Report, experts: list[dict]) -> None:
    """What the kernels saw during the forward."""
    for rank in experts:
        seen = rank["counters"]
        report.fact("counters", f"rank {rank['rank']}: " + ", ".join(f"{name} {value}" for name, value in seen.items()))
        if seen["saturated_blocks"]:
            share = seen["saturated_blocks"] / max(rank["blocks"], 1)
            (report.fault if share > SATURATED else report.note)(
                "saturation",
                f"{seen['saturated_blocks']} activation blocks saturated in one forward, {share:.2%} of the experts' "
                f"{rank['blocks']}; calibrated scales leave less than {SATURATED:.1%}",
                "input scales are too small: what is larger is cut."
                if share > SATURATED
                else "a few outliers are cut.",
                "Use NVFP4_MOE_MODE=bf16, or calibrate (NVFP4_MOE_SCALES=calibrated). Ask doctor checkpoint which.",
            )
        if seen["out_of_range_ids"]:
            report.fault(
                "out-of-range-ids",
                f"{seen['out_of_range_ids']} expert ids are out of range; 0 are right",
                "the router or the expert map names experts that there are not.",
                "Look at the router.",
            )


def growth(report: Report, rows: list[dict]) -> None:
    """An output that is suddenly larger by orders of magnitude; massive activations do so too, hence a note."""
    outs = [row for row in rows if row["step"] == 0 and row["layer"] >= 0 and kind(row["name"]) == "the MoE output"]
    for before, after in zip(outs, outs[1:]):
        if before["rms"] and after["rms"] / before["rms"] > GROWTH:
            report.note(
                "sudden-growth",
                f"{after['name']} has rms {after['rms']:.3g}; the layer before has {before['rms']:.3g}",
                "a scale may be wrong there, or the model has massive activations.",
                "Compare with another machine: --save there, --against here.",
            )


def against(report: Report, compared: list[list], file: str, threshold: float) -> None:
    """The first boundary that is not the other run's."""
    report.fact("compared", f"{len(compared)} outputs with {file}")
    below = [(at, each) for at, each in enumerate(compared) if not each[1] >= threshold]
    if not compared:
        report.fault(
            "nothing-compared",
            f"0 outputs of {file} have this model's names and shapes",
            "it is of another run.",
            "Save again.",
        )
    if not below:
        strayed = [each for each in compared if each[2] < threshold]
        if strayed:
            report.note(
                "tokens-differ-from-saved",
                f"{len(strayed)} of {len(compared)} outputs have tokens with a cosine below {threshold}, first in "
                f"{strayed[0][0]} ({strayed[0][2]:.4f}); the median token agrees to "
                f"{min(each[1] for each in compared):.4f}",
                "rounding chose another of two experts that were tied, and later layers see it.",
                "Nothing to do if the two runs add in another order (other ranks, another batch).",
            )
        return
    at, (name, cosine, _) = below[0]
    least = min((each[1] for each in compared[:at]), default=1.0)
    report.fault(
        "differs-from-saved",
        f"{name} is the first of {len(compared)} outputs whose median token has a cosine below {threshold}: "
        f"{cosine:.4f}; the {at} before agree to {least:.4f}",
        f"the fault is in {kind(name)} there, or in what enters it.",
        ADVICE,
    )


def drawn(report: Report, rows: list[dict], experts: list[dict], file: str) -> None:
    """The picture of it all."""
    kinds = ("the attention output", "the MoE output")
    series = {
        what: {r["layer"]: r["rms"] for r in rows if r["step"] == 0 and r["layer"] >= 0 and kind(r["name"]) == what}
        for what in kinds
    }
    errors = {
        found["layer"]: found.get("wrong_error", found["error"]) for found in experts[0]["layers"] if "error" in found
    }
    written = picture.draw(file, report.subject, {what: line for what, line in series.items() if line}, errors)
    report.fact("picture", written if written == file else f"{written}, because a PNG needs matplotlib")
