"""Encoder, mapper, backbone and their composition; none of them knows Ray."""
