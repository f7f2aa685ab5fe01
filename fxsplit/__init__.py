"""Split any PyTorch model into a shared trunk and M heads whose predictions are averaged."""
