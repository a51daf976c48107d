"""What came out of a study, as a page for people: `docs/results.md` and its charts."""

from __future__ import annotations

import numpy as np

from pipelines.figures.charts import bars
from pipelines.figures.sheets import encode_pngs
from pipelines.runtime.storage import Location
from pipelines.studies.study import Finding


def write_page(findings: list[Finding], page: Location, *, command: str, about: str) -> list[str]:
    """Write the page and, in a folder of its name beside it, a chart for each claim.

    Args:
        findings: the claims and what came of them.
        page: place of the Markdown file.
        command: the command that makes the page.
        about: a sentence on the runs.

    Returns:
        The places of the files.
    """
    folder = page.parent / page.name.removesuffix(".md")
    lines = [
        "# Results",
        "",
        f"Made by `{command}`. {about} ± is half of the 95 % interval over seeds. A claim is "
        "shown, or contradicted, where the interval of the difference lies on one side of what it "
        "says; where there is one run of each kind there is no interval, and nothing is decided.",
        "",
        "| claim | verdict |",
        "|---|---|",
        *(f"| [{f.claim.says}](#{f.claim.name}) | {f.verdict} |" for f in findings),
    ]
    files = [page.uri]
    for finding in findings:
        lines += _section(finding, command)
        if any(finding.table.values()):
            place = folder / f"{finding.claim.name}.png"
            place.write_bytes(encode_pngs({"chart": _chart(finding)})["chart"])
            files.append(place.uri)
            lines += ["", f"![{finding.claim.says}]({folder.name}/{place.name})"]
    page.write_bytes(("\n".join(lines) + "\n").encode())
    return files


def _section(finding: Finding, command: str) -> list[str]:
    claim, arms = finding.claim, finding.claim.arms
    names = {metric: about for about, metric in claim.shown.items()}
    lines = ["", f"## {claim.name}", "", f"{claim.says} **{finding.verdict.capitalize()}.**", ""]
    lines += [f"| metric | {' | '.join(arms)} |", f"|---{'|--:' * len(arms)}|"]
    for metric, of_arms in finding.table.items():
        cells = [of_arms[arm].text if arm in of_arms else "" for arm in arms]
        label = f"{names[metric]} (`{metric}`)" if metric in names else f"`{metric}`"
        lines.append(f"| {label} | {' | '.join(cells)} |")
    lines += ["", "| what must hold | better by | |", "|---|--:|---|"]
    for (about, verdict, found), comparison in zip(finding.parts, claim.comparisons, strict=True):
        margin = f", at most {comparison.margin:g} worse" if comparison.margin else ""
        other = comparison.theirs
        target = other if isinstance(other, str) else f"{other:g}"
        of = f"{about}: {comparison.ours} against {target}{margin}"
        lines.append(f"| {of} | {found.text if np.isfinite(found.mean) else ''} | {verdict} |")
    lines += [f"\nMissing: {name}: {why}" for name, why in finding.missing.items()]
    flags = [word for word in command.split() if word.startswith("--") and word != "--all"]
    own = " ".join(["python -m pipelines study", claim.name, *flags])
    return [*lines, "", f"`{own}`"]


def _chart(finding: Finding):
    """Draw a bar for each arm, metric by metric, below each other."""
    parts = [
        bars(
            {arm: {"mean over seeds": found.mean} for arm, found in of_arms.items()},
            title=f"{finding.claim.name}: {metric}",
        )
        for metric, of_arms in finding.table.items()
        if of_arms
    ]
    return np.concatenate(parts)
