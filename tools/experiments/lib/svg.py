"""A picture of small line charts, as SVG text. Enough for figures against a count of groups."""
import math

COLOURS = ["#1f6f8b", "#d1495b", "#66a182", "#edae49", "#5f4b8b"]
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H = 420, 280, 58, 40, 330, 180


def _ticks(top):
    """Round values from 0 to at least `top`, at most six: steps of 1, 2 or 5 times a power of ten."""
    if top <= 0:
        return [0, 1]
    unit = 10 ** math.floor(math.log10(top / 5))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m * 5 >= top * 0.9999)
    return [step * i for i in range(math.ceil(top / step * 0.9999) + 1)]


def _number(value):
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def _escape(text):
    return str(text).replace("&", "&amp;").replace("<", "&lt;")


def panel(title, unit, xs, series, x_label):
    """`series`: {name: [value or None for each of xs]}. x positions are evenly spaced."""
    values = [v for ys in series.values() for v in ys if v is not None]
    ticks = _ticks(max(values) if values else 1)
    top = ticks[-1]
    x_at = lambda i: LEFT + (PLOT_W * i / (len(xs) - 1) if len(xs) > 1 else PLOT_W / 2)
    y_at = lambda v: TOP + PLOT_H * (1 - v / top)
    out = [f'<text x="{LEFT}" y="20" class="title">{_escape(title)}</text>',
           f'<text x="{LEFT}" y="34" class="small">{_escape(unit)}</text>']
    for tick in ticks:
        out.append(f'<line x1="{LEFT}" x2="{LEFT + PLOT_W}" y1="{y_at(tick):.1f}" y2="{y_at(tick):.1f}" class="grid"/>'
                   f'<text x="{LEFT - 6}" y="{y_at(tick) + 4:.1f}" class="small" text-anchor="end">{_number(tick)}</text>')
    for i, x in enumerate(xs):
        out.append(f'<text x="{x_at(i):.1f}" y="{TOP + PLOT_H + 16}" class="small" text-anchor="middle">{_escape(x)}</text>')
    out.append(f'<text x="{LEFT + PLOT_W / 2}" y="{TOP + PLOT_H + 32}" class="small" text-anchor="middle">{_escape(x_label)}</text>')
    for n, (name, ys) in enumerate(series.items()):
        colour = COLOURS[n % len(COLOURS)]
        points = [(x_at(i), y_at(v)) for i, v in enumerate(ys) if v is not None]
        out.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="'
                   + " ".join(f"{x:.1f},{y:.1f}" for x, y in points) + '"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
        out.append(f'<rect x="{LEFT + 130 * n}" y="{HEIGHT - 18}" width="10" height="10" fill="{colour}"/>'
                   f'<text x="{LEFT + 130 * n + 14}" y="{HEIGHT - 9}" class="small">{_escape(name)}</text>')
    return "\n".join(out)


def picture(title, note, panels, columns=2):
    rows = (len(panels) + columns - 1) // columns
    width, height = WIDTH * columns + 20, HEIGHT * rows + 70
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}">',
           "<style>text{font-family:sans-serif;fill:#222}.head{font-size:17px;font-weight:bold}.title{font-size:14px;"
           "font-weight:bold}.small{font-size:11px;fill:#444}.grid{stroke:#ddd}</style>",
           f'<rect width="{width}" height="{height}" fill="white"/>',
           f'<text x="20" y="26" class="head">{_escape(title)}</text>',
           f'<text x="20" y="44" class="small">{_escape(note)}</text>']
    for i, body in enumerate(panels):
        out.append(f'<g transform="translate({10 + WIDTH * (i % columns)},{56 + HEIGHT * (i // columns)})">{body}</g>')
    out.append("</svg>\n")
    return "\n".join(out)
