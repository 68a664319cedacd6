"""Parts of reports: one self-contained page, charts as inline SVG. Pure; no network, no scripts."""
