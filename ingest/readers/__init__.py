"""The readers: a file's bytes or text to blocks, one module a family of formats. They run in the parser's process only.

Which reader a file gets, and what they all write to, is in `ingest/parse.py`: read that first. PDFs and pictures share
`layout`, `columns`, `tables`, `pages` and `drawn`; what is packed in a zip shares `package`.
"""
