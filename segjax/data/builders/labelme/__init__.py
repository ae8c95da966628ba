"""LabelMe: data of your own, with a JSON file for each image."""
