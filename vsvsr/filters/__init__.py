"""One module per filter: its arguments, defaults and checks, and the session it opens."""
