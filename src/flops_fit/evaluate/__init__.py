"""Evidence: each function yields metrics with intervals, and says what it compared with what."""
