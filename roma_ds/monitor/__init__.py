"""What a run tells its user: console, metrics file, pictures, TensorBoard, report. Only reads a run folder."""
