# SPDX-License-Identifier: Apache-2.0
"""A report as one HTML page that needs nothing else: no script, no font, no other file."""

from collections.abc import Iterable, Iterator
from html import escape
from pathlib import Path

from oneshot import hlo_picture, hlo_text
from oneshot.report import AllReduce, Module, Outcome, by_kind, size, tally

_STYLE = """
:root { color-scheme: light dark;
  --back: #fff; --text: #1c2024; --dim: #5b6570; --line: #d5dae0; --panel: #f6f8fa;
  --yes: #116329; --yes-back: #dafbe1; --no: #8a4600; --no-back: #fff1dc;
  --hit: #0b5cad; --hit-back: #dcebfb; }
@media (prefers-color-scheme: dark) { :root {
  --back: #14171a; --text: #e3e7eb; --dim: #9aa5b1; --line: #363d45; --panel: #1d2227;
  --yes: #6fdd8b; --yes-back: #12331d; --no: #f2b266; --no-back: #3b2a12;
  --hit: #7fbaf5; --hit-back: #11304e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.5rem; max-width: 100rem; background: var(--back);
  color: var(--text); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.4rem; margin: 0 0 .2rem; }
h2 { font-size: 1.1rem; margin: 2rem 0 .2rem; }
h3 { font-size: .85rem; margin: 0 0 .5rem; color: var(--dim); font-weight: 600; }
p { margin: 0 0 .8rem; color: var(--dim); }
code, pre, svg text { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, monospace; }
code, pre { font-size: .87em; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .4rem 0; }
summary { cursor: pointer; padding: .45rem .7rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem;
  align-items: baseline; }
summary::before { content: "\\25b8"; color: var(--dim); }
details[open] > summary::before { content: "\\25be"; }
dd details { margin: 0; } dd summary { padding: 0 .5rem; }
summary:focus-visible { outline: 2px solid var(--hit); outline-offset: 1px; border-radius: 6px; }
details[open] > summary { border-bottom: 1px solid var(--line); background: var(--panel); }
summary .source { margin-left: auto; color: var(--dim); }
.tag { padding: 0 .5rem; border-radius: 1rem; font-weight: 600; font-size: .85em; }
.yes { color: var(--yes); background: var(--yes-back); }
.alone { color: var(--dim); background: var(--line); }
.no { color: var(--no); background: var(--no-back); }
.body { padding: .7rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1rem; margin: 0 0 .8rem; }
dt { color: var(--dim); } dd { margin: 0; overflow-wrap: anywhere; }
pre { margin: 0; white-space: pre-wrap; }
.graphs { display: flex; flex-wrap: wrap; gap: 1rem; }
.graphs > div { flex: 1 1 24rem; min-width: 0; overflow: auto; padding: .7rem;
  background: var(--panel); border-radius: 6px; }
svg { display: block; margin: 0 auto; }
.box rect { fill: var(--back); stroke: var(--line); }
.box text { fill: var(--text); font-size: 12px; text-anchor: middle; }
.box .shape { fill: var(--dim); }
.region rect { fill: var(--hit-back); stroke: var(--hit); }
.stop rect { fill: var(--no-back); stroke: var(--no); stroke-dasharray: 4 3; }
.edge { fill: none; stroke: var(--dim); stroke-width: 1.2; }
.arrow { fill: var(--dim); }
"""

# Shared by all pictures; has a size so that browsers keep it.
_ARROW = (
    '<svg width="0" height="0" aria-hidden="true" style="position:absolute"><defs>'
    '<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path class="arrow" d="M0 0L8 4L0 8z"/></marker></defs></svg>'
)


def write(modules: Iterable[Module]) -> str:
    """Returns the page. Reads the HLO beside the reports; draws nothing where it is missing."""
    modules = list(modules)
    kinds = by_kind(modules)
    counts = tally(site for module in modules for site in module.all_reduces)
    body = "".join(part for alike in kinds for part in _module(alike[0], len(alike)))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Oneshot: {counts}</title>"
        f"<style>{_STYLE}</style></head><body>{_ARROW}"
        f"<h1>{counts}</h1>"
        f"<p>in {len(modules)} module{'s' * (len(modules) != 1)} with all-reduces; those that are "
        "alike share a row. In the pictures, blue is what was matched and what has replaced it; "
        f"a dashed box is where a match ended.</p>{body}</body></html>\n"
    )


def _module(module: Module, count: int) -> Iterator[str]:
    yield (
        f"<section><h2>{escape(module.module)}</h2><p>{escape(module.origin(count))}: "
        f"{tally(module.all_reduces)}"
    )
    if module.declined_module:
        yield f"; left alone: {escape(module.declined_module)}"
    yield "</p>"
    if module.hint:
        yield f"<p>{escape(module.hint)}</p>"
    pictures = _Pictures(module)
    # What was left alone first. The layers of a model are alike: one row for each kind.
    for sites in sorted(module.kinds, key=lambda sites: sites[0].fired):
        yield from _row(module, sites, pictures)
    yield "</section>"


def _row(module: Module, sites: list[AllReduce], pictures: "_Pictures") -> Iterator[str]:
    site = sites[0]
    tag = {Outcome.FUSED: "yes", Outcome.ALONE: "alone", Outcome.LEFT: "no"}[site.outcome]
    what = {Outcome.FUSED: site.epilogue, Outcome.ALONE: "", Outcome.LEFT: site.reason}
    sent = f"{size(site.bytes)} &times; {site.group_size} ranks" if site.group_size else ""
    times = f" &times; {len(sites)}" if len(sites) > 1 else ""
    file, _, line = site.source.rpartition(":")
    yield (
        f'<details><summary><span class="tag {tag}">{site.outcome}{times}'
        f"</span><span>{escape(what[site.outcome])}</span><code>{escape(site.shape)}</code><span>{sent}</span>"
        f"<span>{escape(site.layer)}</span>"
        f'<span class="source">{escape(f"{Path(file).name}:{line}" if file else "")}</span>'
        '</summary><div class="body"><dl>'
    )
    names = ", ".join(other.name for other in sites)
    facts = {"all-reduce": names, "op name": site.site, "source": site.source}
    for term, text in facts.items():
        if text:
            yield f"<dt>{term}</dt><dd><code>{escape(text)}</code></dd>"
    if saving := module.expected_saving(site):
        yield f"<dt>expected saving</dt><dd>{saving}</dd>"
    if site.program:
        text = escape(site.program.replace("; ", "\n"))
        yield f"<dt>program</dt><dd><details><summary>{len(text.splitlines())} statements"
        yield f'</summary><pre class="body">{text}</pre></details></dd>'
    for stop in site.stopped:
        yield f"<dt>edge</dt><dd>{escape(str(stop))}</dd>"
    yield f'</dl><div class="graphs">{"".join(pictures.of(site))}</div></div></details>'


class _Pictures:
    """Draws the all-reduces of one module."""

    def __init__(self, module: Module):
        self._before = _parse(module.before)
        self._after = _parse(module.after)
        remaining = {name for computation in self._after for name in computation.instructions}
        names = [site.name for site in module.all_reduces]
        self._replaced: dict[str, set[str]] = {}
        for computation in self._before if self._after else []:
            self._replaced |= hlo_picture.replaced(computation, remaining, names)

    def of(self, site: AllReduce) -> Iterator[str]:
        """The picture before, and if it was replaced the one after."""
        marks = {stop.instruction: stop.reason for stop in site.stopped}
        if computation := hlo_text.find(self._before, site.name):
            region = self._replaced.get(site.name, {site.name}) if site.fired else {site.name}
            view = hlo_picture.around(computation, region, hops=1 if site.fired else 3)
            yield _figure("before", hlo_picture.svg(view, marks, f"HLO around {site.name}, before"))
        if site.fired and (computation := hlo_text.find(self._after, site.custom_call)):
            users = computation.users()[site.custom_call]
            region = {site.custom_call} | {
                user
                for user in users
                if computation.instructions[user].opcode == "get-tuple-element"
            }
            view = hlo_picture.around(computation, region)
            yield _figure(
                "after", hlo_picture.svg(view, {}, f"HLO around {site.custom_call}, after")
            )


def _figure(title: str, svg: str) -> str:
    return f'<div tabindex="0"><h3>{title}</h3>{svg}</div>'


def _parse(path: Path) -> list[hlo_text.Computation]:
    return hlo_text.parse(path.read_text()) if path.is_file() else []
