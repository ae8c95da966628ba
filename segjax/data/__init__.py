"""Data: builders that prepare data sets, and the input pipeline that reads them."""
