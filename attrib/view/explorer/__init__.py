"""The explorer: a graph as one page of HTML that needs no network, and a server of such pages on this machine alone."""
