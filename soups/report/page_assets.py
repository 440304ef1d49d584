"""Hold the style sheet and the script of the report page, so that the page needs no other file."""

CSS = """
:root { color-scheme: light dark; --ink: #1f2933; --quiet: #5b6875; --line: #dfe4e9; --back: #f6f7f9; --card: #fff;
  --accent: #0072b2; --best: #e3f2e6; --best-ink: #14532d; --plus: #17692f; --minus: #a3291f; --stripe: #f8f9fb;
  --hover: #e8f1f8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --quiet: #9fabb7; --line: #343d47; --back: #14181d;
  --card: #1b2128; --accent: #62b5e8; --best: #1d3b28; --best-ink: #a9e5ba; --plus: #7fd197; --minus: #f19a90;
  --stripe: #1f262e; --hover: #26323d; } }
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
main, header { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 40px; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 6px; letter-spacing: -0.01em; }
h2 { font-size: 1.3rem; margin: 44px 0 10px; letter-spacing: -0.005em; scroll-margin-top: 12px; }
h3 { font-size: 1.02rem; margin: 0 0 8px; }
p { margin: 0 0 12px; max-width: 96ch; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
.quiet, figcaption { color: var(--quiet); font-size: 0.9rem; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0 4px; font-size: 0.92rem; }
.said { font-size: 1.12rem; margin: 16px 0 4px; }
.said p { margin: 0 0 4px; }
.note { color: var(--minus); font-size: 0.9rem; }
figure, .scroll, details { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
button[data-save], .button { font: inherit; font-size: 0.8rem; padding: 2px 9px; border: 1px solid var(--line);
  border-radius: 6px; background: none; color: var(--accent); cursor: pointer; }
button[data-save]:hover, .button:hover { border-color: var(--accent); text-decoration: none; }
.saved { margin: 0; }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: 0.82rem; font-variant-numeric: tabular-nums; }
details p.quiet { margin-top: 0; }
th, td { padding: 5px 7px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { font-weight: 600; vertical-align: bottom; }
thead th { border-bottom: 2px solid var(--line); white-space: normal; }
tbody tr:last-child > * { border-bottom: 0; }
tbody tr:nth-child(even) > * { background: var(--stripe); }
th:first-child, td:first-child, .text { text-align: left; }
tbody th { font-weight: 500; }
th:first-child { position: sticky; left: 0; background: var(--card); z-index: 1; }
tbody tr:hover > * { background: var(--hover); }
td[title], th[title] { cursor: help; }
td.best span { background: var(--best); color: var(--best-ink); border-radius: 5px; padding: 1px 5px; margin: 0 -5px; }
.plus { color: var(--plus); }
.minus { color: var(--minus); }
small.spread { color: var(--quiet); font-weight: 400; font-size: 0.82em; }
.dot { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 8px;
  box-shadow: 0 0 0 1px var(--line); }
th button { all: unset; cursor: pointer; }
th button:hover { color: var(--accent); }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 3px; }
th[aria-sort="ascending"] button::after { content: " ▴"; }
th[aria-sort="descending"] button::after { content: " ▾"; }
figure { margin: 14px 0; padding: 18px 20px; display: grid; grid-template-columns: minmax(0, 700px) minmax(220px, 1fr);
  gap: 14px 28px; align-items: center; }
figure img { display: block; width: 100%; height: auto; background: #fff; border-radius: 6px; }
@media (max-width: 900px) { figure { grid-template-columns: minmax(0, 1fr); } }
@media (prefers-color-scheme: dark) { figure img { padding: 8px; } }
details { margin: 10px 0; padding: 0 16px; }
summary { cursor: pointer; padding: 11px 0; font-weight: 600; }
details .scroll { border: 0; margin: 0 -16px 8px; border-radius: 0 0 10px 10px; }
code { font: 0.92em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
svg { display: block; max-width: 100%; height: auto; }
footer { max-width: 1240px; margin: 44px auto 0; padding: 0 20px 48px; }
@media (max-width: 640px) { body { font-size: 15px; } header { padding-top: 24px; } h1 { font-size: 1.55rem; }
  main, header, footer { padding-left: 14px; padding-right: 14px; } figure { padding: 12px; }
  table { font-size: 0.82rem; } th, td { padding: 5px 8px; } th:first-child { white-space: normal; min-width: 108px; } }
@media print { body { background: #fff; font-size: 11px; } nav, button[data-save], .saved { display: none; }
  .scroll { overflow: visible; }
  figure, tr { break-inside: avoid; } h2 { break-after: avoid; } table { font-size: 8.5px; }
  th, td { padding: 3px 4px; } figure { grid-template-columns: 62% 1fr; } }
"""

# a click on a heading sorts by the values behind the cells, numbers from the highest and texts from A, a second click
# the other way round; cells without a number stay at the end
SCRIPT = """
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const text = (row) => row.cells[column].dataset.v, number = (row) => parseFloat(text(row));
    const numeric = [...body.rows].some((row) => !isNaN(number(row))), was = head.getAttribute("aria-sort");
    const up = numeric ? was === "descending" : was !== "ascending", sign = up ? 1 : -1;
    const compare = (a, b) => !numeric ? sign * text(a).localeCompare(text(b))
      : isNaN(number(a)) - isNaN(number(b)) || sign * (number(a) - number(b));
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    body.append(...[...body.rows].sort(compare));
  }));
}
// a figure is saved as the page holds it, or as a PNG of twice its size
for (const button of document.querySelectorAll("button[data-save]")) button.addEventListener("click", () => {
  const image = button.closest("figure").querySelector("img"), link = document.createElement("a");
  link.download = button.dataset.save;
  link.href = image.src;
  if (link.download.endsWith(".png")) {
    const canvas = document.createElement("canvas"), size = [2 * image.naturalWidth, 2 * image.naturalHeight];
    [canvas.width, canvas.height] = size;
    canvas.getContext("2d").drawImage(image, 0, 0, ...size);
    link.href = canvas.toDataURL("image/png");
  }
  link.click();
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => (part.open = true)));
"""
