"""One dialect a file: wire shapes and handlers, no logic of their own."""
