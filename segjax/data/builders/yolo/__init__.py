"""YOLO: data of your own, with a text file for each image and a data.yaml."""
