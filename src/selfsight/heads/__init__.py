"""Small trained models on an encoder, one task a file, and the folder that each leaves behind."""
