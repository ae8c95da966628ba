"""Paper tables: how their rows are trained, measured results, and the page that shows both."""
