"""Video files in and out: the one place that knows containers, rotation and colour tags."""
