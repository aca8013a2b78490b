"""Training data for other tools: JSONL, Parquet, Hugging Face datasets, archives by window."""
