"""What a person or a program talks to: HTTP, pages, the command line. Start reading at `server.app`."""
