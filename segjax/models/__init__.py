"""One paper, one file: its variants are a table that cites the paper's."""
