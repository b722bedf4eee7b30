"""Names of a catalogue's items as vectors, computed once and kept in the store."""
