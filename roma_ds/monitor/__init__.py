"""What a run tells its user: console, metrics file, pictures, TensorBoard, report. Reads run folders only."""
