"""What a question passes through, and what it is answered from. Start reading at `rag.answer`.

Imports neither `ingest` nor `server`: this package answers from whatever store it is handed.
"""
