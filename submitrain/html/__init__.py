"""HTML of reports and notebooks: Jinja2 templates beside their callers, charts as inline SVG."""
