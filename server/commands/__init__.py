"""Commands that are a family of their own: `readingroom models ...`, `readingroom adapters ...`."""
