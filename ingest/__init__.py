"""What a file passes through: watch, settle, parse, chunk, embed, store, ledger. Start reading at `ingest.pipeline`.

Imports `rag` (records, errors, settings, the store and the embedder), never `server`.
"""
