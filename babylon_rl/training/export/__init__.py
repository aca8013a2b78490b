"""Training data for other tools: JSONL of ART messages, Parquet, a Hugging Face dataset directory, an archive by window."""
