"""How our figures look, on light and dark pages."""

STYLE = """
.fig{--ink:#1f2430;--soft:#6a7280;--rule:#d9dde3;--field:#f3f5f8;--read:#2f6fde;--good:#118a4e;
--bad:#cf2f2f;--back:#fff;font:12px system-ui,sans-serif}
@media (prefers-color-scheme:dark){.fig{--ink:#e8eaee;--soft:#9aa3b2;--rule:#3a4150;
--field:#1d222b;--read:#6ea0ff;--good:#4ac285;--bad:#ff7a70;--back:#13161c}}
.fig .back{fill:var(--back)}.fig text{fill:var(--ink)}.fig .soft{fill:var(--soft)}
.fig .title{font-weight:600;font-size:14px}.fig .field{fill:var(--field)}
.fig .rule{stroke:var(--rule);fill:none}.fig .good{fill:var(--good)}.fig .bad{fill:var(--bad)}
.fig .some,.fig .all{stroke:var(--read);fill:none}.fig .some{opacity:.6}
.fig .hit,.fig .lost{fill:none;stroke-width:1.6}.fig .hit{stroke:var(--good)}
.fig .lost{stroke:var(--bad)}.fig .on{fill:var(--back);font-weight:600}
"""
