"""Models, one file per paper; variants are tables that cite the paper."""
