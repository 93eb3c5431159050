"""Shows a run: TensorBoard, sheets of samples, figures and the report."""
