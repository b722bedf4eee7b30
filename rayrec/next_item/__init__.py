"""Next-item systems that no stage trains: rankers, hybrids of systems, what a language model answers."""
