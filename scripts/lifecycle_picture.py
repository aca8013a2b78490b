"""Draws the transitions of a batch (babylon_rl/training/lifecycle.py) as an SVG, on standard output.

States stand in the order of the table; arcs lead over others, back or forward; the transitions into ``failed`` share one line.
"""

from babylon_rl.training.lifecycle import STATES, TRANSITIONS

WIDTH, STEP, BOX_W, BOX_H, TOP = 1060, 172, 104, 34, 150
X = {state: 16 + number * STEP for number, state in enumerate(state for state in STATES if state != "failed")}
BOTTOM = TOP + 130


def _box(x: float, y: float, state: str) -> str:
    ended = " ended" if state in ("completed", "failed") else ""
    return (
        f'<rect class="box{ended}" x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="8"/>'
        f'<text x="{x + BOX_W / 2}" y="{y + 22}" text-anchor="middle">{state}</text>'
    )


def _arrow(name: str, source: str, target: str) -> str:
    """One change of a state: straight to the next box, else an arc over the boxes between."""
    if X[target] - X[source] == STEP:
        start, end = X[source] + BOX_W, X[target]
        return (
            f'<path class="arrow" d="M{start} {TOP + BOX_H / 2} H{end - 2}"/>'
            f'<text class="small" x="{(start + end) / 2}" y="{TOP + BOX_H / 2 - 6}" text-anchor="middle">{name}</text>'
        )
    back = X[target] < X[source]
    start, end = X[source] + BOX_W * (0.35 if back else 0.5), X[target] + BOX_W * (0.65 if back else 0.5)
    height = (26 if back else 56) + 22 * abs(X[target] - X[source]) / STEP
    middle = (start + end) / 2
    return (
        f'<path class="arrow" d="M{start:g} {TOP} C{start:g} {TOP - height * 1.33:g} {end:g} {TOP - height * 1.33:g} {end:g} {TOP - 2}"/>'
        f'<text class="small" x="{middle:g}" y="{TOP - height - 4:g}" text-anchor="middle">{name}</text>'
    )


def picture() -> str:
    """The SVG's text."""
    ends = [transition for transition in TRANSITIONS if transition.target == "failed"]
    moves = [transition for transition in TRANSITIONS if transition.target != "failed"]
    parts = [_arrow(move.name, source, move.target) for move in moves for source in move.sources if source != move.target]
    first, last = min(X[state] for end in ends for state in end.sources), max(X[state] for end in ends for state in end.sources)
    line_y = TOP + 76
    for state in {state: None for end in ends for state in end.sources}:
        parts.append(f'<path class="line" d="M{X[state] + BOX_W / 2} {TOP + BOX_H} V{line_y}"/>')
    middle = (first + last + BOX_W) / 2
    parts.append(f'<path class="line" d="M{first + BOX_W / 2} {line_y} H{last + BOX_W / 2}"/>')
    parts.append(f'<path class="arrow" d="M{middle} {line_y} V{BOTTOM - 2}"/>')
    notes = [f"{end.name}: {end.when.replace('`', '')} ({end.actor})" for end in ends]
    parts += [
        f'<text class="small" x="{middle + BOX_W / 2 + 14}" y="{BOTTOM + 2 + 15 * row}">{note}</text>' for row, note in enumerate(notes)
    ]
    parts += [_box(x, TOP, state) for state, x in X.items()] + [_box(middle - BOX_W / 2, BOTTOM, "failed")]
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {BOTTOM + 70}" role="img" aria-label="States of a batch">
<style>
text {{ font: 14px sans-serif; fill: #1f2933 }} .small {{ font-size: 12px; fill: #52606d }}
.box {{ fill: #e8f1fa; stroke: #3a78b0 }} .ended {{ fill: #eef0f2; stroke: #7b8794 }}
.arrow, .line {{ fill: none; stroke: #52606d; stroke-width: 1.3 }} .arrow {{ marker-end: url(#tip) }}
</style>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0 L8 4 L0 8 z" fill="#52606d"/></marker></defs>
<rect width="100%" height="100%" fill="#ffffff"/>
{chr(10).join(parts)}
</svg>"""


if __name__ == "__main__":
    print(picture())
