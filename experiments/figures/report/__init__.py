"""The report: one static page, and one in Markdown, with every figure and table."""
