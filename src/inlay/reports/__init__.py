"""Building blocks of a report: HTML and charts."""
