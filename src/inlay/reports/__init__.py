"""What a report is made of: HTML and charts."""
