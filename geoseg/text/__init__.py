"""Words: classes, synonyms, colours, prompt templates and their embeddings."""
