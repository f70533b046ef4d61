"""The layer of experts; adapters call its parts."""
