# Nothing to install yet.
