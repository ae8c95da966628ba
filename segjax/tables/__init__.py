"""Tables of papers: what makes their rows, what was measured, and the page that shows both."""
