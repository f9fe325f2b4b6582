"""`kit estimate`: does it fit, how long will it take. Imports no torch."""
