"""``minibert serve``: an HTTP server that gives the vectors of texts."""
