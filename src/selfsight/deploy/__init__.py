"""What runs where nobody trains: a head or an encoder as one ONNX file, and what computes with it."""
