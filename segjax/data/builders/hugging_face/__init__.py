"""Hugging Face datasets: data of your own, in arrow or parquet files."""
