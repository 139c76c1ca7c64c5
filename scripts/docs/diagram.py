"""Draw a Mermaid flowchart as an SVG picture, so that the site needs no script for it.

Only what docs/architecture.md uses is understood: ``name[label]`` and ``a --> b & c``. Nodes are laid out
in layers, as Sugiyama et al. (1981) do: a node stands below everything that points to it, long arrows
pass through invisible nodes, and each layer is sorted by the mean position of its neighbours.
"""

import re
from html import escape
from statistics import fmean

WIDTH, HEIGHT, GAP_X, GAP_Y = 170, 34, 14, 50
"""Size of a box and of the space around it, in pixels."""
SWEEPS = 12

Graph = dict[str, set[str]]


def parse(text: str) -> tuple[dict[str, str], Graph]:
    """Read a flowchart: the label of each node, and the nodes that each points to."""
    labels = dict(re.findall(r'^\s*(\w+)\["?([^\]"]+)"?\]', text, re.M))
    arrows: Graph = {name: set() for name in labels}
    for start, ends in re.findall(r"^\s*(\w+) --> (.+)$", text, re.M):
        arrows[start] |= {end.strip() for end in ends.split("&")}
    return labels, arrows


def make_layers(arrows: Graph) -> list[list[str]]:
    """Assign nodes to layers and sort each; a long arrow gets a node in every layer between."""
    depth: dict[str, int] = {}

    def deepen(name: str, level: int) -> None:
        if level > depth.get(name, -1):
            depth[name] = level
            for end in arrows[name]:
                deepen(end, level + 1)

    for name in arrows:
        deepen(name, 0)
    _split_long(arrows, depth)
    layers = [[name for name in arrows if depth[name] == level] for level in range(max(depth.values()) + 1)]
    incoming: Graph = {name: {start for start, ends in arrows.items() if name in ends} for name in arrows}
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        neighbours = incoming if down else arrows
        for layer in layers if down else reversed(layers):
            place = {
                name: index - len(row) / 2
                for row in layers
                if row is not layer
                for index, name in enumerate(row)
            }
            layer.sort(key=lambda name: fmean([place[other] for other in neighbours[name]] or [0]))
    return layers


def _split_long(arrows: Graph, depth: dict[str, int]) -> None:
    for start, end in [(start, end) for start, ends in arrows.items() for end in sorted(ends)]:
        if depth[end] - depth[start] > 1:
            arrows[start].remove(end)
            before = start
            for level in range(depth[start] + 1, depth[end]):
                name = f"{start}>{end}>{level}"
                arrows[before].add(name)
                arrows[name], depth[name] = set(), level
                before = name
            arrows[before].add(end)


def draw(text: str, title: str) -> str:
    """Return the picture of a flowchart as one SVG element, with its title for screen readers."""
    labels, arrows = parse(text)
    layers = make_layers(arrows)
    widest = max(len(layer) for layer in layers)
    step_x, step_y = WIDTH + GAP_X, HEIGHT + GAP_Y
    place = {
        name: (int((widest - len(layer)) * step_x / 2 + index * step_x + GAP_X), level * step_y + 8)
        for level, layer in enumerate(layers)
        for index, name in enumerate(layer)
    }
    lines, boxes = [], []
    for start, ends in arrows.items():
        x1, y1 = place[start][0] + WIDTH // 2, place[start][1] + HEIGHT
        for end in ends:
            x2, y2 = place[end][0] + WIDTH // 2, place[end][1]
            head = ' marker-end="url(#head)"' if end in labels else ""
            through = "" if end in labels else f"V{y2 + HEIGHT}"
            bend = GAP_Y * 2 // 3
            lines.append(
                f'<path d="M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}{through}"{head}/>'
            )
    for name, label in labels.items():
        x, y = place[name]
        boxes.append(f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>')
        boxes.append(f'<text x="{x + WIDTH // 2}" y="{y + HEIGHT // 2 + 5}">{escape(label)}</text>')
    size = f"0 0 {widest * step_x + GAP_X} {len(layers) * step_y}"
    return (
        f'<svg class="flowchart" role="img" aria-label="{escape(title)}" viewBox="{size}" '
        'xmlns="http://www.w3.org/2000/svg"><defs><marker id="head" viewBox="0 0 8 8" refX="8" refY="4" '
        'markerWidth="8" markerHeight="8" orient="auto"><path class="head" d="M0 0L8 4L0 8z"/></marker>'
        "</defs>"
        f"{''.join(lines)}{''.join(boxes)}</svg>"
    )
