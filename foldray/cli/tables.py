"""Plans, result rows and comparisons as tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from foldray.runtime.terminal import print_line, print_table

if TYPE_CHECKING:
    from foldray.results.comparison import DepthPair
    from foldray.results.rows import ResultRow


def plan_table(planned: dict[str, Any], drawn: bool) -> None:
    """Print the JSON object of `plan`. drawn: a training step runs a sample of the depths."""
    paths = ["path", "decoder path"] if "decoder" in planned else ["path"]
    columns = ["depth", *paths, "stored params", "private", "unshared params", "stored MB", "MMACs/s of audio"]
    print_table("", columns, [_planned(each) for each in planned["depths"]])
    if "decoder" in planned:
        print_line("encoder paths share computed prefixes; decoder paths share stored layers only")
    deepest, joint = planned["depths"][-1], planned["joint"]
    saved = 1 - deepest["params_stored"] / deepest["params_unrolled"]
    print_line(f"{100 * saved:.1f} % fewer stored parameters than an unshared model of depth {deepest['depth']}")
    times = joint["macs_per_audio_second"] / deepest["macs_per_audio_second"]
    mean, most = (" on average", " at most") if drawn else ("", "")
    print_line(
        f"a training step{mean}: {joint['macs_per_audio_second'] / 1e6:,.0f} MMACs/s of audio forward, {times:.2f} "
        f"times depth {deepest['depth']}; keeps{most} {joint['kept_bytes_per_audio_second'] / 1e6:,.1f} MB/s of audio "
        "for backward, in float32"
    )
    sizes = ", ".join(f"{size / 1e6:,.1f} MB as {name}" for name, size in planned["bytes"].items())
    print_line(f"stored weights: {sizes}")


def _planned(cost: dict[str, Any]) -> list[str]:
    return [
        str(cost["depth"]),
        *(" ".join(map(str, cost[name])) for name in ("path", "decoder_path") if name in cost),
        f"{cost['params_stored']:,}",
        f"{cost['params_private']:,}",
        f"{cost['params_unrolled']:,}",
        f"{cost['bytes_stored'] / 1e6:,.1f}",
        f"{cost['macs_per_audio_second'] / 1e6:,.0f}",
    ]


def result_table(rows: "Sequence[ResultRow]") -> None:
    """Print result rows, a table for each run and test set."""
    tables: dict[tuple[str, str, str, str], list[ResultRow]] = {}
    for row in rows:
        tables.setdefault((row["run_id"], row["corpus"], row["split"], row["decoding"]), []).append(row)
    columns = ("depth", "WER", "CER", "path", "stored", "unshared", "saved", "MMACs/s", "RTFx")
    for (run_id, corpus, split, decoding), members in tables.items():
        way = "" if decoding == "ctc" else f", {decoding} decoding"
        title = f"{run_id} on {corpus} {split}, {members[0]['num_utterances']} utterances{way}"
        print_table(title, columns, [_cells(row) for row in sorted(members, key=lambda row: row["depth"])])


def _cells(row: "ResultRow") -> list[str]:
    return [
        str(row["depth"]) if row["trained"] else f"{row['depth']} (untrained)",
        f"{row['wer']:.1%}",
        f"{row['cer']:.1%}",
        row["path"],
        f"{row['params_stored'] / 1e6:.2f} M",
        f"{row['params_unrolled'] / 1e6:.2f} M",
        f"{1 - row['params_stored'] / row['params_unrolled']:.1%}",
        f"{row['macs_per_audio_second'] / 1e6:,.0f}",
        f"{row['rtfx']:.{1 if row['rtfx'] < 10 else 0}f}",
    ]


SHOWN = ("wer", "cer", "params_stored", "bytes_stored", "macs_per_audio_second", "rtfx")
"""Columns that `row_list` always shows."""


def row_list(rows: "Sequence[ResultRow]", more: Sequence[str] = ()) -> None:
    """Print result rows of many runs in one table, with additional columns."""
    columns = ["run", "test set", "depth", "WER", "CER", "stored", "MB", "MMACs/s", "RTFx", *more]
    print_table("", columns, [[*_line(row), *_values(row, more)] for row in rows])


def _values(row: Mapping[str, object], columns: Sequence[str]) -> list[str]:
    return [cell(row[name]) for name in columns]


def _line(row: "ResultRow") -> list[str]:
    way = "" if row["decoding"] == "ctc" else f", {row['decoding']}"
    return [
        row["run_id"],
        f"{row['corpus']} {row['split']}{way}",
        str(row["depth"]) if row["trained"] else f"{row['depth']} (untrained)",
        f"{row['wer']:.2%}",
        f"{row['cer']:.2%}",
        f"{row['params_stored'] / 1e6:.2f} M",
        f"{row['bytes_stored'] / 1e6:,.1f}",
        f"{row['macs_per_audio_second'] / 1e6:,.0f}",
        f"{row['rtfx']:.{1 if row['rtfx'] < 10 else 0}f}",
    ]


def comparison_table(run_a: str, run_b: str, pairs: Sequence["DepthPair"]) -> None:
    """Print pairs of depths, a table for each test set."""
    columns = ["depth A", "depth B", "WER A", "WER B", "A - B", "95 % interval", "p (MAPSSWE)", "different"]
    if "margin" in pairs[0]:
        columns.append(f"A - B <= {100 * pairs[0]['margin']:g} %")
    for test_set in sorted({(pair["corpus"], pair["split"], pair["decoding"]) for pair in pairs}):
        here = [pair for pair in pairs if (pair["corpus"], pair["split"], pair["decoding"]) == test_set]
        names = [_first_of(each) for each in (run_a, run_b, test_set[0])]
        title = f"A = {names[0]}, B = {names[1]}, {names[2]} {test_set[1]}: {here[0]['num_words']:,} words"
        if "num_speakers" in here[0]:
            title += f", {here[0]['num_speakers']} speakers"
        print_table(title, columns, [_pair(pair) for pair in here])


def _first_of(names: str) -> str:
    """The first of several names joined by commas."""
    first, *others = names.split(",")
    return f"{first} and {len(others)} more" if others else first


def _pair(pair: "DepthPair") -> list[str]:
    return [
        str(pair["depth_a"]),
        str(pair["depth_b"]),
        f"{pair['wer_a']:.2%}",
        f"{pair['wer_b']:.2%}",
        f"{pair['difference']:+.2%}",
        f"{pair['low']:+.2%} to {pair['high']:+.2%}",
        f"{pair['p_value']:.3f}" if pair["p_value"] >= 0.001 else "< 0.001",
        cell(pair["significant"]),
        *([cell(pair["within_margin"])] if "margin" in pair else []),
    ]


def cell(value: object) -> str:
    """Format any value briefly."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value)
