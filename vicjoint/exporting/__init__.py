"""What a trained model becomes for others: facts, a model card, the libraries' own forms, ONNX and PyTorch
programs."""
