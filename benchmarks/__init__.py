"""Claims: the smallest honest experiment for each published system. Peers: this toolkit against what one would pick instead."""
