"""What people see of a run: TensorBoard, the console, sheets and figures."""
