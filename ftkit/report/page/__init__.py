"""Draw a report: as an HTML page, and as Markdown. No statistics are computed here."""
