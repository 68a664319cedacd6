"""HTML of reports and notebooks: one self-contained page, charts as inline SVG; no scripts."""
