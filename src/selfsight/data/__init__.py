"""Collections, decoding, canvases, batches."""
