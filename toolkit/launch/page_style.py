"""How the offline page of a notebook looks: light and dark by the reader's system, no file beside the page."""

STYLE = """
:root {
  color-scheme: light dark;
  --surface: #ffffff; --sunken: #f5f6f8; --border: #d5d9e0; --text: #1c2430; --muted: #5a6472; --link: #0b57b0;
  --bad: #b3261e; --keyword: #7a1fa2; --string: #2b6a1b; --number: #9a4a00; --comment: #5f6b78; --name: #0b57b0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --surface: #14171c; --sunken: #1e232b; --border: #363d49; --text: #e6e9ee; --muted: #a3acb9; --link: #7db8ff;
    --bad: #ff8f86; --keyword: #d59bf0; --string: #9bd48a; --number: #ffb074; --comment: #98a2b0; --name: #7db8ff;
  }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--text); background: var(--surface); }
body { font: 16px/1.6 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1, h2, h3, h4 { margin: 1.8em 0 0.5em; line-height: 1.25; }
h1 { margin-top: 0.5em; font-size: 2rem; }
h2 { font-size: 1.45rem; }
h3 { font-size: 1.15rem; }
p, ul, ol, blockquote, table { margin: 0.7em 0; }
a { color: var(--link); }
img { max-width: 100%; height: auto; }
blockquote { padding-left: 1em; border-left: 3px solid var(--border); color: var(--muted); }
code, pre { font: 0.86rem/1.55 ui-monospace, "SFMono-Regular", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
:not(pre) > code { padding: 0.1em 0.3em; background: var(--sunken); border-radius: 4px; overflow-wrap: anywhere; }
pre { margin: 0.7em 0; padding: 0.7rem 0.9rem; overflow-x: auto; background: var(--sunken); }
pre { border: 1px solid var(--border); border-radius: 8px; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3em 0.9em 0.3em 0; border-bottom: 1px solid var(--border); text-align: left; vertical-align: top; }
.output td, .output thead th:not(:first-child) { text-align: right; }
.cell { margin: 1.1rem 0; }
.cell > pre { margin-bottom: 0; }
.output { margin: 0.5rem 0 0; padding-left: 0.9rem; border-left: 3px solid var(--border); overflow-x: auto; }
.output pre { margin: 0; padding: 0; background: none; border: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.error { border-left-color: var(--bad); }
.error pre { color: var(--bad); }
.note { color: var(--muted); font-size: 0.9rem; font-style: italic; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
.t-k, .t-kn, .t-kc, .t-kd, .t-kr, .t-ow { color: var(--keyword); }
.t-s, .t-s1, .t-s2, .t-sa, .t-sd, .t-sb, .t-si, .t-se, .t-sr { color: var(--string); }
.t-m, .t-mi, .t-mf, .t-mh, .t-mo, .t-mb { color: var(--number); }
.t-c, .t-c1, .t-cm, .t-ch { color: var(--comment); font-style: italic; }
.t-nf, .t-nc, .t-fm, .t-nd { color: var(--name); }
@media print { main { max-width: none; padding: 0; } pre, .output { break-inside: avoid; } }
"""
