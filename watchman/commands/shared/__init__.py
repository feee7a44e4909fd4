"""What several commands need: the client of the socket, tables, the terminal, selections."""
